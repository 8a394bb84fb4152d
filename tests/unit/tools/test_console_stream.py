"""Attaching to a console before the console daemon serves it."""

import socket
import threading
import time
from pathlib import Path

import pytest

from ring3.errors import Error
from ring3.libs.console_log import OFFSET
from ring3.tools import console_stream
from ring3.tools.console_stream import ConsoleStream


def serve(path: Path, delay_s: float) -> None:
    """Makes the socket after a while, and serves one reader from offset 5 on."""
    time.sleep(delay_s)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        sock, _address = listener.accept()
        with sock:
            sock.recv(OFFSET.size)
            sock.sendall(OFFSET.pack(5) + b"hello")


def test_one_waits_while_the_console_is_to_be_expected(tmp_path: Path) -> None:
    """Under load a domain that is listed may wait for its console for longer than a reader would think."""
    path = tmp_path / "1.stream"
    asked: list[float] = []

    def is_expected() -> bool:
        asked.append(time.monotonic())
        return True

    thread = threading.Thread(target=serve, args=(path, 0.4))
    thread.start()
    with ConsoleStream(path, is_expected) as stream:
        stream.set_timeout(10)
        assert stream.receive() == b"hello"
    thread.join()
    assert 2 <= len(asked) < 50, "it asks, and ever less often"


def test_one_does_not_wait_for_what_is_not_to_come(tmp_path: Path) -> None:
    path = tmp_path / "1.stream"
    answers = [True, True, False]
    with pytest.raises(Error, match="no console to attach to: No such file"):
        ConsoleStream(path, lambda: answers.pop(0))
    assert not answers


def test_waiting_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_stream, "_APPEAR_TIMEOUT_S", 0.1)
    with pytest.raises(Error, match="no console to attach to"):
        ConsoleStream(tmp_path / "1.stream", lambda: True)
