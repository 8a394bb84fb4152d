"""The console daemon's log, readers and rings."""

import socket
from pathlib import Path

import pytest

from ring3.dom0.byte_ring import ByteRing
from ring3.dom0.console.domain import INPUT_BYTES_MAX, DomainConsole
from ring3.dom0.console.log import BACKLOG_BYTES_MAX, FILE_BYTES_MAX, ConsoleLog
from ring3.dom0.console.reader import UNSENT_BYTES_MAX, Reader


class Page:
    """A mapping that is no guest's."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(4096))

    def close(self) -> None:
        self.view.release()


def rings(page: Page) -> tuple[ByteRing, ByteRing]:
    """The guest's side: (in, out)."""
    return (
        ByteRing(page.view, 1, data_offset=0, size=1024, cons_offset=3072, prod_offset=3076),
        ByteRing(page.view, 1, data_offset=1024, size=2048, cons_offset=3080, prod_offset=3084),
    )


@pytest.fixture
def page() -> Page:
    return Page()


@pytest.fixture
def console(page: Page, tmp_path: Path) -> DomainConsole:
    return DomainConsole(1, page, 5, tmp_path / "1.log")  # type: ignore[arg-type]


def test_log_keeps_the_last_two_files_and_a_short_backlog(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path / "c.log")
    line = b"x" * 99 + b"\n"
    for _number in range(5 * FILE_BYTES_MAX // 100):
        log.append(line)
    log.close()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"c.log", "c.log.1"}
    assert max(sizes.values()) <= FILE_BYTES_MAX
    assert len(log.backlog) <= 2 * BACKLOG_BYTES_MAX
    assert log.backlog.startswith(b"xx")
    assert len(log.backlog) % 100 == 0, "it is cut at a line"


def test_log_that_cannot_be_written_only_loses_the_file(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path / "missing" / "c.log")
    log.append(b"text")
    assert log.backlog == b"text"


def test_slow_reader_loses_the_oldest_output_and_is_told() -> None:
    ours, theirs = socket.socketpair()
    reader = Reader(ours, b"")
    for _number in range(UNSENT_BYTES_MAX // 65536 + 1):
        reader.queue(bytes(65536))
    assert len(reader._unsent) <= UNSENT_BYTES_MAX
    assert b"dropped for a slow reader" in reader._unsent
    assert reader.flush()
    theirs.close()
    assert not reader.flush()
    ours.close()


def test_leaving_reader_gets_everything_first() -> None:
    ours, theirs = socket.socketpair()
    reader = Reader(ours, b"backlog")
    reader.is_leaving = True
    assert not reader.flush()
    assert theirs.recv(100) == b"backlog"
    ours.close()
    theirs.close()


def test_output_goes_to_log_and_readers(console: DomainConsole, page: Page) -> None:
    _guest_in, guest_out = rings(page)
    ours, theirs = socket.socketpair()
    console.readers.append(Reader(ours, b""))
    guest_out.write(b"hello")
    assert console.pump()
    assert not console.pump()
    console.readers[0].flush()
    assert theirs.recv(10) == b"hello"
    assert console.backlog() == b"hello"
    ours.close()
    theirs.close()


def test_input_waits_for_a_guest_that_does_not_read_and_stays_bounded(console: DomainConsole, page: Page) -> None:
    guest_in, _guest_out = rings(page)
    nr_queued = 0
    while console.room_for_input():
        console.queue_input(b"y" * 4096)
        nr_queued += 4096
        console.pump()
    assert nr_queued <= INPUT_BYTES_MAX + 4096 + 1024
    received = b""
    while data := guest_in.read(1024):
        received += data
        console.pump()
    assert received == b"y" * nr_queued


def test_nonsense_indices_end_that_console_only(console: DomainConsole, page: Page) -> None:
    page.view[3084:3088] = (5000).to_bytes(4, "little")
    assert not console.pump()
    assert console.is_broken
    assert not console.has_output()
