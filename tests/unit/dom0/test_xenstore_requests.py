"""What xenstored answers. No daemon: requests in, queued replies and events out."""

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ring3.abi.xs_wire import XsType
from ring3.dom0.xenstored import quota
from ring3.dom0.xenstored.clients import NR_EVENTS_MAX, Client
from ring3.dom0.xenstored.core import Core
from ring3.dom0.xenstored.recorder import Recorder
from ring3.dom0.xenstored.requests import Requests
from ring3.dom0.xenstored.wire import Message, RefusedError


class Domains:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.introduced: dict[int, tuple[int, int]] = {}

    def introduce(self, domid: int, mfn: int, port: int) -> bool:
        is_new = domid not in self.introduced
        self.introduced[domid] = (mfn, port)
        return is_new

    def release(self, domid: int) -> None:
        if self.introduced.pop(domid, None) is None:
            raise RefusedError("ENOENT")

    def is_introduced(self, domid: int) -> bool:
        return domid in self.introduced

    def resume(self, domid: int) -> None:
        if domid not in self.introduced:
            raise RefusedError("ENOENT")

    def set_target(self, domid: int, target: int) -> None:  # noqa: ARG002
        raise RefusedError("ENOENT")


class Daemon:
    """Remembers what the administrator wanted."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def set_tracing(self, *, enabled: bool) -> None:
        self.asked.append(enabled)

    def note(self, text: str) -> None:
        self.asked.append(text)

    def log_to(self, path: str) -> None:
        raise OSError(errno.EACCES, path)

    def report(self, path: str, text: str) -> None:
        self.asked.append((path, text))

    def live_update(self, arguments: list[str]) -> str:
        self.asked.append(arguments)
        return "OK"


class Store:
    """xenstored's core with clients, spoken to by name."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        self.domains = Domains()
        self.daemon = Daemon()
        self.core = Core(recorder)
        self.requests = Requests(self.core, self.domains, self.daemon)
        self.dom0 = Client(0, is_privileged=True)

    def guest(self, domid: int) -> Client:
        """Makes a home as the toolstack does, and returns its client."""
        home = f"/local/domain/{domid}"
        self.ask(self.dom0, XsType.MKDIR, home)
        self.ask(self.dom0, XsType.SET_PERMS, home, f"n{domid}")
        return Client(domid, is_privileged=False)

    def ask(self, client: Client, kind: int, *strings: str, tx: int = 0, raw: bytes | None = None) -> bytes:
        """Returns the payload of the reply; raises RefusedError. Events stay queued."""
        payload = raw if raw is not None else b"".join(text.encode() + b"\0" for text in strings)
        before = len(client.outgoing)
        self.requests.handle(client, Message(kind, 9, tx, payload))
        replies = []
        for encoded in list(client.outgoing)[before:]:
            answer, req_id, tx_id, length = struct.unpack_from("<4I", encoded)
            if answer != XsType.WATCH_EVENT:
                assert (req_id, tx_id, length) == (9, tx, len(encoded) - 16)
                client.outgoing.remove(encoded)
                replies.append((answer, encoded[16:]))
        assert len(replies) == 1, "one reply to a request"
        if replies[0][0] == XsType.ERROR:
            raise RefusedError(replies[0][1].rstrip(b"\0").decode())
        assert replies[0][0] == kind
        return replies[0][1]

    def write(self, client: Client, path: str, value: str, tx: int = 0) -> None:
        assert self.ask(client, XsType.WRITE, tx=tx, raw=path.encode() + b"\0" + value.encode()) == b"OK\0"

    def read(self, client: Client, path: str, tx: int = 0) -> str:
        return self.ask(client, XsType.READ, path, tx=tx).decode()

    def begin(self, client: Client) -> int:
        return int(self.ask(client, XsType.TRANSACTION_START, "").rstrip(b"\0"))

    def end(self, client: Client, tx: int, verdict: str = "T") -> None:
        self.ask(client, XsType.TRANSACTION_END, verdict, tx=tx)

    def events(self, client: Client) -> list[tuple[str, str]]:
        """Takes the queued events."""
        found = []
        while client.outgoing:
            encoded = client.outgoing.popleft()
            client.taken(encoded)
            path, token, _rest = encoded[16:].split(b"\0")
            found.append((path.decode(), token.decode()))
        return found


@pytest.fixture
def store() -> Store:
    return Store()


def refused(errno_name: str):  # type: ignore[no-untyped-def]
    return pytest.raises(RefusedError, match=f"^{errno_name}$")


# -- nodes


def test_write_makes_missing_ancestors(store: Store) -> None:
    store.write(store.dom0, "/a/b/c", "value")
    assert store.read(store.dom0, "/a/b/c") == "value"
    assert store.read(store.dom0, "/a/b") == ""
    assert store.ask(store.dom0, XsType.DIRECTORY, "/a") == b"b\0"


def test_relative_paths_begin_at_home(store: Store) -> None:
    guest = store.guest(3)
    store.write(guest, "data/x", "1")
    assert store.read(store.dom0, "/local/domain/3/data/x") == "1"


@pytest.mark.parametrize("path", ["", "//", "/a//b", "/a/", "/a b", "@x", "/" + "a" * 3072, "b" * 2049, "/a\x01"])
def test_invalid_paths_are_refused(store: Store, path: str) -> None:
    with refused("EINVAL"):
        store.read(store.dom0, path)


def test_missing_node_is_enoent_and_mkdir_twice_is_fine(store: Store) -> None:
    with refused("ENOENT"):
        store.read(store.dom0, "/none")
    store.ask(store.dom0, XsType.MKDIR, "/some")
    store.write(store.dom0, "/some", "kept")
    store.ask(store.dom0, XsType.MKDIR, "/some")
    assert store.read(store.dom0, "/some") == "kept"


def test_rm_takes_the_subtree(store: Store) -> None:
    store.write(store.dom0, "/a/b/c", "1")
    store.ask(store.dom0, XsType.RM, "/a/b")
    assert store.ask(store.dom0, XsType.DIRECTORY, "/a") == b""
    store.ask(store.dom0, XsType.RM, "/a/b")  # the parent is there
    with refused("ENOENT"):
        store.ask(store.dom0, XsType.RM, "/a/b/c")
    with refused("EINVAL"):
        store.ask(store.dom0, XsType.RM, "/")
    assert store.ask(store.dom0, XsType.CONTROL, "check") == b"OK\0"


def test_deep_trees_do_not_recurse(store: Store) -> None:
    store.write(store.dom0, "/" + "/".join(["d"] * 1500), "deep")
    store.ask(store.dom0, XsType.RM, "/d")
    with refused("ENOENT"):
        store.read(store.dom0, "/d")


def test_long_directories_come_in_parts(store: Store) -> None:
    names = [f"child-{number:04}" for number in range(1000)]
    for name in names:
        store.write(store.dom0, f"/long/{name}", "")
    with refused("E2BIG"):
        store.ask(store.dom0, XsType.DIRECTORY, "/long")
    seen = b""
    while not seen.endswith(b"\0\0"):
        payload = store.ask(store.dom0, XsType.DIRECTORY_PART, "/long", str(len(seen)))
        assert len(payload) <= 4096
        seen += payload.partition(b"\0")[2]
    assert seen.decode().split("\0")[:-2] == names


# -- permissions and quotas


def test_guests_see_and_write_only_what_they_may(store: Store) -> None:
    guest, other = store.guest(1), store.guest(2)
    store.write(guest, "secret", "1")
    with refused("EACCES"):
        store.read(other, "/local/domain/1/secret")
    with refused("EACCES"):
        store.write(other, "/local/domain/1/new", "1")
    with refused("EACCES"):
        store.write(guest, "/tool/x", "1")
    store.ask(guest, XsType.SET_PERMS, "secret", "n1", "r2")
    assert store.read(other, "/local/domain/1/secret") == "1"
    with refused("EACCES"):
        store.write(other, "/local/domain/1/secret", "2")


def test_guests_cannot_give_nodes_away_or_take_them(store: Store) -> None:
    guest = store.guest(1)
    store.write(guest, "mine", "1")
    with refused("EPERM"):
        store.ask(guest, XsType.SET_PERMS, "mine", "n2")
    store.write(store.dom0, "/shared", "1")
    store.ask(store.dom0, XsType.SET_PERMS, "/shared", "b0")
    with refused("EACCES"):
        store.ask(guest, XsType.SET_PERMS, "/shared", "b0")
    assert store.ask(guest, XsType.GET_PERMS, "mine") == b"n1\0"


@pytest.mark.parametrize("perm", ["", "x1", "r", "rx", "r99999", "r-1", "r123456"])
def test_malformed_permissions_are_refused(store: Store, perm: str) -> None:
    store.write(store.dom0, "/a", "1")
    with refused("EINVAL"):
        store.ask(store.dom0, XsType.SET_PERMS, "/a", perm)


@pytest.mark.parametrize("kind", [XsType.INTRODUCE, XsType.RELEASE, XsType.RESUME, XsType.SET_TARGET, XsType.CONTROL])
def test_guests_may_not_manage_domains(store: Store, kind: XsType) -> None:
    with refused("EACCES"):
        store.ask(store.guest(1), kind, "1", "2", "3")


def test_quota_of_nodes_counts_ancestors_and_transactions(store: Store) -> None:
    guest = store.guest(1)
    nr = 0
    tx = store.begin(guest)
    with refused("ENOSPC"):
        for nr in range(2000):
            store.write(guest, f"data/n{nr}", "", tx=tx)
    assert nr == quota.DEFAULTS["nodes"] - 2  # home and data are nodes too
    store.end(guest, tx)
    with refused("ENOSPC"):
        store.write(guest, "one-more", "")
    store.ask(guest, XsType.RM, "data")
    store.write(guest, "one-more", "")


def test_quotas_of_size_watches_and_transactions(store: Store) -> None:
    guest = store.guest(1)
    with refused("ENOSPC"):
        store.write(guest, "big", "x" * 2049)
    for number in range(quota.DEFAULTS["watches"]):
        store.ask(guest, XsType.WATCH, "x", str(number))
    with refused("E2BIG"):
        store.ask(guest, XsType.WATCH, "x", "last")
    for _number in range(quota.DEFAULTS["transactions"]):
        store.begin(guest)
    with refused("ENOSPC"):
        store.begin(guest)


# -- transactions


def test_transaction_is_seen_by_others_only_after_its_end(store: Store) -> None:
    tx = store.begin(store.dom0)
    store.write(store.dom0, "/a", "1", tx=tx)
    assert store.read(store.dom0, "/a", tx=tx) == "1"
    with refused("ENOENT"):
        store.read(store.dom0, "/a")
    store.end(store.dom0, tx)
    assert store.read(store.dom0, "/a") == "1"
    with refused("ENOENT"):
        store.end(store.dom0, tx)


def test_aborted_transaction_leaves_nothing(store: Store) -> None:
    tx = store.begin(store.dom0)
    store.write(store.dom0, "/a/b", "1", tx=tx)
    store.end(store.dom0, tx, "F")
    with refused("ENOENT"):
        store.read(store.dom0, "/a")


@pytest.mark.parametrize("how", ["write", "remove", "create"])
def test_conflict_fails_with_eagain(store: Store, how: str) -> None:
    store.write(store.dom0, "/a", "1")
    tx = store.begin(store.dom0)
    if how == "create":
        with refused("ENOENT"):
            store.read(store.dom0, "/new", tx=tx)
        store.write(store.dom0, "/new", "2")
    else:
        store.read(store.dom0, "/a", tx=tx)
        if how == "write":
            store.write(store.dom0, "/a", "2")
        else:
            store.ask(store.dom0, XsType.RM, "/a")
    store.write(store.dom0, "/b", "3", tx=tx)
    with refused("EAGAIN"):
        store.end(store.dom0, tx)
    with refused("ENOENT"):
        store.read(store.dom0, "/b")


def test_transactions_apart_both_succeed(store: Store) -> None:
    store.write(store.dom0, "/a/x", "")
    store.write(store.dom0, "/b/x", "")
    first, second = store.begin(store.dom0), store.begin(store.dom0)
    store.write(store.dom0, "/a/x", "1", tx=first)
    store.write(store.dom0, "/b/x", "2", tx=second)
    store.end(store.dom0, first)
    store.end(store.dom0, second)
    assert (store.read(store.dom0, "/a/x"), store.read(store.dom0, "/b/x")) == ("1", "2")


# -- watches


def test_a_new_watch_fires_at_once_and_then_on_changes_below(store: Store) -> None:
    store.ask(store.dom0, XsType.WATCH, "/a", "t")
    assert store.events(store.dom0) == [("/a", "t")]
    store.write(store.dom0, "/a/b/c", "1")
    assert store.events(store.dom0) == [("/a/b/c", "t")]
    store.write(store.dom0, "/ab", "1")
    assert store.events(store.dom0) == []
    store.ask(store.dom0, XsType.UNWATCH, "/a", "t")
    store.write(store.dom0, "/a", "1")
    assert store.events(store.dom0) == []
    with refused("ENOENT"):
        store.ask(store.dom0, XsType.UNWATCH, "/a", "t")


def test_relative_watch_gets_relative_events(store: Store) -> None:
    guest = store.guest(5)
    store.ask(guest, XsType.WATCH, "control/shutdown", "s")
    assert store.events(guest) == [("control/shutdown", "s")]
    store.write(store.dom0, "/local/domain/5/control/shutdown", "poweroff")
    assert store.events(guest) == [("control/shutdown", "s")]


def test_deletion_of_a_parent_fires(store: Store) -> None:
    store.write(store.dom0, "/a/b/c", "1")
    store.ask(store.dom0, XsType.WATCH, "/a/b/c", "t")
    store.events(store.dom0)
    store.ask(store.dom0, XsType.RM, "/a")
    assert store.events(store.dom0) == [("/a/b/c", "t")]


def test_events_of_a_transaction_come_at_its_commit_each_once(store: Store) -> None:
    store.ask(store.dom0, XsType.WATCH, "/a", "t")
    store.events(store.dom0)
    tx = store.begin(store.dom0)
    for _again in range(3):
        store.write(store.dom0, "/a/b", "1", tx=tx)
    assert store.events(store.dom0) == []
    store.end(store.dom0, tx)
    assert store.events(store.dom0) == [("/a/b", "t")]


def test_no_events_about_what_a_guest_may_not_read(store: Store) -> None:
    guest = store.guest(1)
    store.ask(guest, XsType.WATCH, "/", "all")
    store.events(guest)
    store.guest(2)
    store.write(store.dom0, "/local/domain/2/secret", "1")
    store.ask(store.dom0, XsType.RM, "/local/domain/2/secret")
    assert [path for path, _token in store.events(guest) if "/2/" in path] == []


def test_same_event_waits_once_and_a_deaf_client_costs_bounded_memory(store: Store) -> None:
    guest = store.guest(1)
    store.ask(guest, XsType.WATCH, "data", "t")
    for number in range(NR_EVENTS_MAX + 500):
        for _again in range(2):
            store.write(store.dom0, f"/local/domain/1/data/{number}", "x")
    assert len(guest.outgoing) == NR_EVENTS_MAX
    assert guest.nr_lost_events > 0


def test_watch_twice_is_eexist_and_reset_forgets(store: Store) -> None:
    guest = store.guest(1)
    store.ask(guest, XsType.WATCH, "x", "t")
    with refused("EEXIST"):
        store.ask(guest, XsType.WATCH, "x", "t")
    store.ask(guest, XsType.RESET_WATCHES, "")
    store.events(guest)
    store.write(guest, "x", "1")
    assert store.events(guest) == []


# -- domains


def test_introduce_and_release_fire_the_special_watches(store: Store) -> None:
    store.ask(store.dom0, XsType.WATCH, "@introduceDomain", "i")
    store.ask(store.dom0, XsType.WATCH, "@releaseDomain", "r")
    store.events(store.dom0)
    store.ask(store.dom0, XsType.INTRODUCE, "1", "300", "2")
    assert store.domains.introduced == {1: (300, 2)}
    assert store.ask(store.dom0, XsType.IS_DOMAIN_INTRODUCED, "1") == b"T\0"
    store.ask(store.dom0, XsType.RELEASE, "1")
    assert store.events(store.dom0) == [("@introduceDomain", "i"), ("@releaseDomain", "r")]
    with refused("ENOENT"):
        store.ask(store.dom0, XsType.RELEASE, "1")


def test_special_watches_tell_guests_nothing(store: Store) -> None:
    guest = store.guest(1)
    store.ask(guest, XsType.WATCH, "@introduceDomain", "i")
    store.events(guest)
    store.ask(store.dom0, XsType.INTRODUCE, "2", "300", "2")
    assert store.events(guest) == []


def test_domain_path(store: Store) -> None:
    assert store.ask(store.guest(1), XsType.GET_DOMAIN_PATH, "42") == b"/local/domain/42\0"
    assert store.ask(store.dom0, XsType.GET_DOMAIN_PATH, "0007") == b"/local/domain/7\0"
    assert store.ask(store.dom0, XsType.GET_DOMAIN_PATH, "32752") == b"/local/domain/32752\0"
    with refused("EINVAL"):
        store.ask(store.dom0, XsType.GET_DOMAIN_PATH, "x")


def test_which_domains_are_introduced_is_for_domain_0_to_know(store: Store) -> None:
    """Source: Xen's advisory 115."""
    assert store.ask(store.dom0, XsType.IS_DOMAIN_INTRODUCED, "32752") == b"T\0", "DOMID_SELF"
    assert store.ask(store.dom0, XsType.IS_DOMAIN_INTRODUCED, "32753") == b"F\0"
    with refused("EACCES"):
        store.ask(store.guest(1), XsType.IS_DOMAIN_INTRODUCED, "1")


@pytest.mark.parametrize("kind", [XsType.RELEASE, XsType.RESUME])
def test_domain_0_is_not_released_or_resumed(store: Store, kind: XsType) -> None:
    with refused("EINVAL"):
        store.ask(store.dom0, kind, "0")


def test_unknown_requests_and_transactions(store: Store) -> None:
    with refused("ENOSYS"):
        store.ask(store.dom0, 999)
    with refused("ENOENT"):
        store.read(store.dom0, "/", tx=5)
    for kind in (XsType.WATCH, XsType.UNWATCH):
        assert store.ask(store.dom0, kind, "/w", "t", tx=5) == b"OK\0", "they are outside of all transactions"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 23), st.integers(0, 3), st.binary(max_size=40)), max_size=30))
def test_any_request_of_a_guest_gets_one_answer_and_changes_nothing_it_may_not(
    sent: list[tuple[int, int, bytes]],
) -> None:
    store = Store()
    guest = store.guest(1)
    store.write(store.dom0, "/vital", "intact")
    store.ask(store.dom0, XsType.SET_PERMS, "/vital", "n0")
    for kind, tx_id, payload in sent:
        nr_before = len(guest.outgoing)
        store.requests.handle(guest, Message(kind, 1, tx_id, payload))
        assert len(guest.outgoing) > nr_before
    assert store.read(store.dom0, "/vital") == "intact"
    assert store.ask(store.dom0, XsType.CONTROL, "check") == b"OK\0"
