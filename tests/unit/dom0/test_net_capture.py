"""Captures: what their clients get, and that one who does not read makes nobody wait."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ring3.dom0.net import capture
from ring3.dom0.net.capture import Captures
from ring3.dom0.net.networks import Networks
from ring3.dom0.net.packet import Packet
from ring3.dom0.net.switch import Switch
from ring3.dom0.poller import Poller
from ring3.errors import ConnectionLostError, Error
from ring3.libs.capture import RECORD, SOCKET_NAME, CaptureStream


class Setup:
    """A switch, and the socket of captures."""

    def __init__(self, directory: Path) -> None:
        self.poller = Poller()
        self.networks = Networks(directory, self.poller, lambda: 0.0, lambda _name: [])
        self.switch = self.networks._switches.setdefault("lab", Switch("lab"))
        self.captures = Captures(directory, self.poller, self.networks)
        self.path = directory / SOCKET_NAME

    def turn(self) -> None:
        for _number in range(4):
            self.poller.wait(0)
        self.captures.flush()

    def client(self, request: bytes) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(str(self.path))
        sock.sendall(request)
        self.turn()
        return sock


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    made = Setup(tmp_path)
    yield made
    made.captures.close()
    made.poller.close()


def packet(data: bytes) -> Packet:
    return Packet([], len(data), header=data[:256], views=[memoryview(data[:100]), memoryview(data[100:])])


def test_client_gets_whole_packets_as_far_as_it_wants_them(setup: Setup) -> None:
    data = bytes(range(256)) * 4
    with setup.client(b"switch lab 300\n") as sock:
        assert sock.recv(100) == b"ok\n"
        assert setup.switch.wants_bytes
        setup.switch.captures[0].take(packet(data))
        setup.turn()
        record = sock.recv(4096)
        seconds, micros, nr_here, nr_bytes = RECORD.unpack_from(record)
        assert (nr_here, nr_bytes, record[16:]) == (300, 1024, data[:300])
        assert seconds > 0
        assert micros < 1_000_000
    setup.turn()
    assert (setup.switch.captures, setup.switch.wants_bytes) == ([], False)


@pytest.mark.parametrize(
    "request_line", [b"switch other 9\n", b"vif 1 0 9\n", b"vif\n", b"\n", b"\xff\xff 1\n", b"switch lab\n"]
)
def test_what_is_not_there_is_refused(setup: Setup, request_line: bytes) -> None:
    with setup.client(request_line) as sock:
        assert sock.recv(300).startswith(b"error there is no ")


def test_client_that_talks_too_much_is_dropped(setup: Setup) -> None:
    for request in (b"x" * 300, b"switch lab 9\nmore"):
        with setup.client(request) as sock:
            assert sock.recv(10) == b""
    with setup.client(b"switch lab 9\n") as sock:
        assert sock.recv(10) == b"ok\n"
        sock.sendall(b"again\n")
        setup.turn()
        assert sock.recv(10) == b""


def test_client_that_does_not_read_loses_packets_and_is_told_how_many(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "_QUEUE_BYTES_MAX", 1 << 20)
    with setup.client(b"switch lab 65536\n") as sock:
        assert sock.recv(3) == b"ok\n"
        sent = 200
        for _number in range(sent):
            setup.switch.captures[0].take(packet(bytes(60000)))
            setup.turn()
        got = lost = 0
        stream = b""
        while got + lost < sent:
            setup.turn()
            stream += sock.recv(1 << 20)
            while len(stream) >= 16:
                _s, _us, nr_here, nr_bytes = RECORD.unpack_from(stream)
                if len(stream) < 16 + nr_here:
                    break
                got, lost = (got + 1, lost) if nr_here else (got, nr_bytes)
                stream = stream[16 + nr_here :]
        assert lost > 100
        assert got + lost == sent


def test_client_library_tells_errors_apart(tmp_path: Path) -> None:
    with pytest.raises(ConnectionLostError):
        CaptureStream(tmp_path / "none", "switch lab", 9)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()

        def serve() -> None:
            record = RECORD.pack(1, 2, 3, 60) + b"abc"
            for answer in (b"error there is no switch x\n", b"ok\n" + record + b"part", b"error\n"):
                client, _address = listener.accept()
                with client:
                    client.recv(100)
                    client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(Error, match="there is no switch x"):
            CaptureStream(tmp_path / "sock", "switch x", 9)
        with CaptureStream(tmp_path / "sock", "switch lab", 9) as stream:
            # What was cut off by the end of the back end is left out; then the source is gone.
            assert [found.raw for found in stream.packets()] == [RECORD.pack(1, 2, 3, 60) + b"abc"]
        thread.join()
