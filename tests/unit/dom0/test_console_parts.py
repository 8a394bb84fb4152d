"""The console daemon's log, readers and rings."""

import os
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring3.dom0.byte_ring import ByteRing
from ring3.dom0.console.attachments import Attachments
from ring3.dom0.console.domain import INPUT_BYTES_MAX, DomainConsole, make_owner
from ring3.dom0.console.log import BACKLOG_BYTES_MAX, FILE_BYTES_MAX, ConsoleLog
from ring3.dom0.console.place import ConsolePlace
from ring3.dom0.console.reader import UNSENT_BYTES_MAX, PtyReader, Reader, StreamReader
from ring3.dom0.keeper import Keeper, Kept
from ring3.dom0.poller import Poller
from ring3.libs.console_log import OFFSET

OWNER = make_owner(bytes(range(16)), 7)


class Page:
    """A mapping that is no guest's."""

    def __init__(self, data: bytearray | None = None) -> None:
        self.data = data if data is not None else bytearray(4096)
        self.view = memoryview(self.data)

    def close(self) -> None:
        self.view.release()


def rings(page: Page) -> tuple[ByteRing, ByteRing]:
    """The guest's side: (in, out)."""
    view = memoryview(page.data)
    return (
        ByteRing(view, 1, data_offset=0, size=1024, cons_offset=3072, prod_offset=3076),
        ByteRing(view, 1, data_offset=1024, size=2048, cons_offset=3080, prod_offset=3084),
    )


@pytest.fixture
def page() -> Page:
    return Page()


@pytest.fixture
def console(page: Page, tmp_path: Path) -> DomainConsole:
    return DomainConsole(ConsolePlace(tmp_path, 1), page, 5, OWNER)


def test_log_keeps_the_last_two_files_and_a_short_backlog(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path / "c.log", tmp_path / "c.state")
    line = b"x" * 99 + b"\n"
    for _number in range(5 * FILE_BYTES_MAX // 100):
        log.append(line)
    log.close()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"c.log", "c.log.1", "c.state"}
    assert max(sizes.values()) <= FILE_BYTES_MAX
    assert len(log.backlog) <= 2 * BACKLOG_BYTES_MAX
    assert log.backlog.startswith(b"xx")
    assert len(log.backlog) % 100 == 0, "it is cut at a line"


def test_log_that_cannot_be_written_only_loses_the_file(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path / "missing" / "c.log", tmp_path / "missing" / "c.state")
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


# -- readers that come back, terminals


def test_reader_that_counts_begins_where_it_says(console: DomainConsole, page: Page) -> None:
    _guest_in, guest_out = rings(page)
    guest_out.write(b"hello")
    console.pump()
    for wanted, begin, output in ((3, 3, b"lo"), (5, 5, b""), (99, 0, b"hello"), ((1 << 64) - 1, 0, b"hello")):
        ours, theirs = socket.socketpair()
        reader = StreamReader(ours, console.output_from)
        reader.queue(b"not yet")
        theirs.send(OFFSET.pack(wanted)[:5])
        assert reader.receive() == b""
        theirs.send(OFFSET.pack(wanted)[5:] + b"typed")
        assert reader.receive() == b"typed"
        reader.queue(b"!")
        reader.flush()
        assert theirs.recv(100) == OFFSET.pack(begin) + output + b"!"
        reader.close()
        theirs.close()


def test_reader_that_counts_and_is_too_slow_is_let_go(console: DomainConsole) -> None:
    ours, theirs = socket.socketpair()
    reader = StreamReader(ours, console.output_from)
    theirs.send(OFFSET.pack(0))
    reader.receive()
    for _number in range(UNSENT_BYTES_MAX // 65536 + 1):
        reader.queue(bytes(65536))
    assert reader.is_leaving
    reader.close()
    theirs.close()


def test_pseudo_terminal_is_raw_and_stays_bounded() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper, kept = Keeper(ours.detach()), Kept(theirs)
    server = threading.Thread(target=kept.serve)
    server.start()
    found = keeper.pty("1-0")
    server.join()
    assert found is not None
    reader = PtyReader(found[0], b"backlog\r\n")
    terminal = os.open(found[1], os.O_RDWR | os.O_NOCTTY)
    assert reader.flush()
    assert os.read(terminal, 100) == b"backlog\r\n"
    os.write(terminal, b"a\x03\r")
    assert reader.receive() == b"a\x03\r"
    assert reader.receive() == b"", "there is no echo"
    os.close(terminal)
    for _number in range(100):
        reader.queue(bytes(4096))
        assert reader.flush()
    assert len(reader._unsent) <= 1 << 16
    reader.close()
    keeper.close()
    kept.close()


# -- a daemon that is killed


@given(st.lists(st.tuples(st.integers(0, 2500), st.sampled_from(["", "early", "late"])), max_size=12), st.data())
def test_output_is_logged_once_whenever_the_daemon_is_killed(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str]], data: st.DataObject
) -> None:
    """The guest prints, the daemon pumps; it is killed before the guest saw its output taken (early), or after it."""
    directory = tmp_path_factory.mktemp("c")
    page = Page()
    start = data.draw(st.sampled_from([0, 2**32 - 900]))
    for offset in (3080, 3084):
        page.view[offset : offset + 4] = start.to_bytes(4, "little")
    _guest_in, guest_out = rings(page)
    place = ConsolePlace(directory, 1)
    console = DomainConsole(place, page, 5, OWNER)
    printed = b""
    for number, (nr_bytes, kill) in enumerate(steps):
        text = (b"%d " % number * nr_bytes)[:nr_bytes]
        printed += text[: guest_out.write(text)]
        before = guest_out.cons
        console.pump()
        if kill == "early":
            guest_out.cons = before
        if kill:
            os.close(console._log._fd)
            page = Page(page.data)
            console = DomainConsole(place, page, 5, OWNER)
    console.pump()
    assert place.log.read_bytes() == printed
    assert console.backlog() == printed[-BACKLOG_BYTES_MAX:]
    assert guest_out.is_empty()
    console.close()


def test_count_survives_the_rotation_of_the_log_and_a_kill_at_each_step(tmp_path: Path) -> None:
    path, state = tmp_path / "c.log", tmp_path / "c.state"
    log = ConsoleLog(path, state, begin=50)
    line = b"x" * 99 + b"\n"
    nr_lines = 2 * FILE_BYTES_MAX // 100 + 500
    for _number in range(nr_lines):
        log.append(line)
    assert ConsoleLog(path, state, goes_on=True).total == 50 + nr_lines * 100
    log.close()
    path.replace(path.with_name("c.log.1"))  # a rotation that was cut off: there is no new file yet
    moved = ConsoleLog(path, state, goes_on=True)
    assert moved.total == 50 + nr_lines * 100
    assert len(moved.backlog) == path.with_name("c.log.1").stat().st_size, "what is there of the output is shown"
    moved.append(line)
    assert ConsoleLog(path, state, goes_on=True).total == 50 + nr_lines * 100 + 100


def test_pseudo_terminal_that_nobody_reads_goes_with_its_console(console: DomainConsole, page: Page) -> None:
    """What waits for it would be waited for without end, and without sleep: its other side has hung up."""
    poller = Poller()
    attachments = Attachments(console, poller, lambda: None)
    master, slave = os.openpty()
    os.set_blocking(master, False)
    attachments.attach_pty(master)
    [reader] = console.readers
    _in, out = rings(page)
    for _again in range(20):
        out.write(b"x" * 2000)
        console.pump()
    attachments.flush(is_room_new=False)
    assert reader.has_unsent()
    attachments.close()
    assert console.readers == [reader], "somebody may be reading"
    os.close(slave)
    poller.wait(5)
    assert console.readers == []
    poller.wait(0)
    poller.close()
    with pytest.raises(OSError):
        os.fstat(master)


def test_log_of_another_domain_begins_anew(tmp_path: Path) -> None:
    place = ConsolePlace(tmp_path, 1)
    first = DomainConsole(place, Page(), 5, OWNER)
    first._log.append(b"old")
    first.close()
    second = DomainConsole(place, Page(), 5, make_owner(bytes(16), 7))
    assert second.backlog() == b""
    assert place.log.read_bytes() == b""
    second.close()
