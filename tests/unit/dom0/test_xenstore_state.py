"""What outlives xenstored: whatever was asked of it, the journal says the same as its memory."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ring3.abi.xs_wire import XsType
from ring3.dom0.xenstored import stream
from ring3.dom0.xenstored.clients import Client
from ring3.dom0.xenstored.core import Core
from ring3.dom0.xenstored.image import Image, SavedConnection
from ring3.dom0.xenstored.journal import Journal
from ring3.dom0.xenstored.perms import Perm
from ring3.dom0.xenstored.requests import Requests
from ring3.dom0.xenstored.state_file import StateFile
from ring3.dom0.xenstored.takeover import restore
from ring3.dom0.xenstored.transactions import Transaction
from ring3.dom0.xenstored.wire import Message
from ring3.errors import StreamError
from unit.dom0.test_xenstore_requests import Daemon, Domains


class Machine:
    """xenstored's core with domains 1 and 2, and a journal that is kept."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.core = Core(self.journal)
        self.requests = Requests(self.core, Domains(), Daemon())
        self.dom0 = Client(0, is_privileged=True)
        self.guests = {domid: Client(domid, is_privileged=False, recorder=self.journal) for domid in (1, 2)}
        for domid in self.guests:
            self.ask(0, XsType.MKDIR, b"/local/domain/%d\0" % domid)
            self.ask(0, XsType.SET_PERMS, b"/local/domain/%d\0n%d\0" % (domid, domid))
        for domid in self.guests:
            self.journal.add(stream.connection(domid, stream.ConnectionType.RING, bytes(8), b"", 0, b""))
        self.data = Image().encode() + self.journal.take()

    def ask(self, domid: int, kind: int, payload: bytes, tx_id: int = 0) -> None:
        self.requests.handle(self.guests.get(domid, self.dom0), Message(kind, 1, tx_id, payload))
        self.dom0.outgoing.clear()

    def image(self) -> Image:
        self.data += self.journal.take()
        return Image.decode(self.data)


NAMES = st.sampled_from(
    [b"a", b"b", b"a/x", b"a/y", b"a/x/deep", b"/local/domain/2/b", b"/local/domain/1", b"/t/u", b"/"]
)
REQUESTS = st.one_of(
    st.tuples(st.just(XsType.WRITE), NAMES, st.binary(max_size=3)).map(lambda r: (r[0], r[1] + b"\0" + r[2])),
    st.tuples(st.sampled_from([XsType.MKDIR, XsType.RM, XsType.READ]), NAMES).map(lambda r: (r[0], r[1] + b"\0")),
    st.tuples(st.just(XsType.SET_PERMS), NAMES, st.sampled_from([b"n1\0r2\0", b"b2\0", b"n0\0"])).map(
        lambda r: (r[0], r[1] + b"\0" + r[2])
    ),
    st.tuples(st.sampled_from([XsType.WATCH, XsType.UNWATCH]), NAMES, st.sampled_from([b"t\0", b"u\0"])).map(
        lambda r: (r[0], r[1] + b"\0" + r[2])
    ),
    st.sampled_from(
        [
            (XsType.RESET_WATCHES, b"\0"),
            (XsType.TRANSACTION_START, b"\0"),
            (XsType.TRANSACTION_END, b"T\0"),
            (XsType.TRANSACTION_END, b"F\0"),
            (XsType.CONTROL, b"quota\0set\0nodes\x0050\0"),
        ]
    ),
)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 0, 1, 2]), REQUESTS), max_size=40))
def test_journal_says_the_same_as_memory(steps: list[tuple[int, int, tuple[int, bytes]]]) -> None:
    machine = Machine()
    for domid, tx_id, (kind, payload) in steps:
        machine.ask(domid, kind, payload, tx_id)
    machine.core.forget_domain(2)
    image = machine.image()
    live = {path: (node.value, node.perms) for path, node in machine.core.store.items()}
    expected = {path: node for path, node in live.items() if path in image.nodes}
    assert image.nodes == expected
    assert list(image.nodes) == [path for path in live if path in image.nodes]
    assert {path for path in live if path not in image.nodes} <= {
        *(b"/", b"/tool", b"/tool/xenstored", b"/local", b"/local/domain", b"@introduceDomain", b"@releaseDomain")
    }, "what was there before the first record"
    for domid, client in machine.guests.items():
        saved = image.connections[domid]
        assert saved.watches == {(watch.spelt, watch.token): watch.depth for watch in machine.core.watches.of(client)}
        assert set(saved.transactions) == set(client.transactions)
        assert saved.output == list(client.outgoing)
        for tx_id, written in saved.transactions.items():
            replayed = Transaction(machine.core.store, is_doomed=True)
            for path, value, perms in written:
                replayed.replay(path, value, perms)
            recorded = {path for path, _value, _perms in written}
            for path, node in client.transactions[tx_id].written():
                if path not in recorded:
                    continue  # it has got or lost children, no more
                found = replayed.get(path)
                assert (found and (found.value, found.perms)) == (node and (node.value, node.perms))
            assert not replayed.commit()
    again = Image.decode(image.encode())
    assert again == image


@settings(max_examples=50)
@given(st.data())
def test_a_stream_that_was_cut_off_ends_at_a_whole_batch(data: st.DataObject) -> None:
    machine = Machine()
    states = [machine.image().nodes]
    ends = [len(machine.data)]
    for number in range(4):
        machine.ask(1, XsType.TRANSACTION_START, b"\0")
        tx_id = next(iter(machine.guests[1].transactions))
        for name in (b"a", b"b"):
            machine.ask(1, XsType.WRITE, b"%s\0%d" % (name, number), tx_id)
        machine.ask(1, XsType.TRANSACTION_END, b"T\0", tx_id)
        states.append(machine.image().nodes)
        ends.append(len(machine.data))
    cut = data.draw(st.integers(ends[0], ends[-1]))
    nr_whole = max(index for index, end in enumerate(ends) if end <= cut)
    assert Image.decode(machine.data[:cut]).nodes == states[nr_whole]


@given(st.binary(max_size=200))
def test_nonsense_is_refused(tail: bytes) -> None:
    for data in (tail, stream.header() + tail):
        try:
            Image.decode(data)
        except StreamError:
            continue


class NoRings:
    """A transport of a machine without domains."""

    def __init__(self) -> None:
        self.released: dict[int, None] = {}

    def restore(self, saved: SavedConnection) -> None:
        """The domain has ended."""


def test_restored_store_is_consistent_and_counts_again() -> None:
    machine = Machine()
    for number in range(5):
        machine.ask(1, XsType.WRITE, b"data/%d\0value" % number)
    live = machine.core
    image = Image({path: (node.value, node.perms) for path, node in live.store.items()}, epoch=2)
    core = Core()
    sockets, ended = restore(image, core, NoRings(), set(), [])  # type: ignore[arg-type]
    assert (sockets, ended) == ([], [])
    assert core.store.owned(1) == live.store.owned(1)
    assert [(path, node.children) for path, node in core.store.items()] == [
        (path, node.children) for path, node in live.store.items()
    ]
    assert min(node.generation for _path, node in core.store.items()) > live.store.generation


def test_state_file_survives_its_writer_and_begins_anew_when_it_has_grown(tmp_path: Path) -> None:
    path = tmp_path / "state"
    state = StateFile(path)
    assert state.load() is None
    image = Image({b"/": (b"", (Perm(0, True, False),))})
    state.write_image(image)
    journal = Journal()
    for number in range(20_000):
        journal.node(b"/a", b"%d" % number * 10, (Perm(0, True, False),))
        state.append(journal.take(), lambda: image)
    assert StateFile(path).load() == Image({**image.nodes, b"/a": (b"19999" * 10, (Perm(0, True, False),))})
    assert state.wants_image()
    state.write_image(image)
    assert not state.wants_image()
    assert StateFile(path).load() == image
    state.close()


def test_state_that_cannot_be_read_is_moved_away(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"nonsense")
    assert StateFile(path).load() is None
    assert (tmp_path / "state.bad").exists()


def test_state_that_cannot_be_written_is_removed_and_costs_nothing_else(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "missing" / "state")
    state.write_image(Image())
    state.append(b"batch", lambda: pytest.fail("it is not tried again at once"))
    assert not state.wants_image()
