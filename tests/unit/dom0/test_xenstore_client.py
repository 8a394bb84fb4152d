"""The client library against xenstored's core, over a real socket."""

import select
import socket
import threading
from collections.abc import Iterator

import pytest

from ring3.dom0.xenstored.core import Core
from ring3.dom0.xenstored.live_update import LiveUpdate
from ring3.dom0.xenstored.requests import Requests
from ring3.dom0.xenstored.socket_client import SocketConnection
from ring3.dom0.xenstored.wire import RefusedError
from ring3.errors import ConnectionLostError, XenstoreRequestError
from ring3.libs.xenstore import XenstoreClient


class NoDomains:
    """There are none."""

    def introduce(self, domid: int, mfn: int, port: int) -> bool:  # noqa: ARG002
        return True

    def release(self, domid: int) -> None:  # noqa: ARG002
        raise RefusedError("ENOENT")

    def is_introduced(self, domid: int) -> bool:
        return domid == 1

    resume = release

    def set_target(self, domid: int, target: int) -> None:
        """Takes anything."""


class Daemon:
    """xenstored's core with any number of socket clients, each served by a thread."""

    def __init__(self) -> None:
        self.requests = Requests(Core(), NoDomains(), LiveUpdate())
        self.lock = threading.Lock()
        self.connections: list[SocketConnection] = []

    def client(self) -> XenstoreClient:
        ours, theirs = socket.socketpair()
        connection = SocketConnection(ours)
        self.connections.append(connection)
        threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
        return XenstoreClient(theirs)

    def _serve(self, connection: SocketConnection) -> None:
        with connection.sock:
            while (messages := connection.receive()) is not None:
                with self.lock:
                    for message in messages:
                        self.requests.handle(connection.client, message)
                    for other in self.connections:
                        other.flush()


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[XenstoreClient]:
    with daemon.client() as client:
        yield client


def test_a_batch_is_carried_out_in_order(client: XenstoreClient) -> None:
    def write_all(tx_id: int) -> None:
        batch = client.batch(tx_id=tx_id)
        batch.mkdir("/many")
        batch.set_perms("/many", ["n0", "r3"])
        for number in range(100):
            batch.write(f"/many/{number % 7}", str(number))
        batch.rm("/many/0")
        batch.commit()

    client.transaction(write_all)
    assert {name: client.read_text(f"/many/{name}") for name in client.directory("/many")} == {
        str(name): str(max(n for n in range(100) if n % 7 == name)) for name in range(1, 7)
    }
    assert client.get_perms("/many/1") == ["n0", "r3"]


def test_a_batch_that_is_refused_in_part_says_so_and_leaves_the_connection_in_step(client: XenstoreClient) -> None:
    def write_all(tx_id: int) -> None:
        batch = client.batch(tx_id=tx_id)
        batch.write("/some/thing", "1")
        batch.rm("/there/is/no/such")
        batch.write("relative path", "2")
        batch.write("/some/other", "3")
        batch.commit()

    with pytest.raises(XenstoreRequestError, match="ENOENT: RM /there/is/no/such") as refused:
        client.transaction(write_all)
    assert refused.value.errno_name == "ENOENT"
    assert "some" not in client.directory("/")
    batch = client.batch(tx_id=0)
    batch.write("/large", bytes(5000))
    with pytest.raises(XenstoreRequestError, match="E2BIG"):
        batch.commit()
    client.write("/after", "all")
    assert client.read_text("/after") == "all"


def test_nodes(client: XenstoreClient) -> None:
    client.write("/a/b", "text")
    client.write("/a/c", b"\x00\xff")
    client.mkdir("/a/d")
    assert client.read_text("/a/b") == "text"
    assert client.read("/a/c") == b"\x00\xff"
    assert client.directory("/a") == ["b", "c", "d"]
    client.set_perms("/a/b", ["n0", "r1"])
    assert client.get_perms("/a/b") == ["n0", "r1"]
    client.rm("/a")
    assert client.read_optional("/a/b") is None
    with pytest.raises(XenstoreRequestError) as caught:
        client.read("/a/b")
    assert caught.value.errno_name == "ENOENT"
    with pytest.raises(XenstoreRequestError):
        client.write("/a", bytes(5000))
    assert client.get_domain_path(5) == "/local/domain/5"
    assert client.is_introduced(1)
    assert not client.is_introduced(2)


def test_directories_that_need_parts(client: XenstoreClient) -> None:
    names = [f"node-{number:05}" for number in range(900)]
    for name in names:
        client.write(f"/many/{name}", "")
    assert client.directory("/many") == names


def test_events_that_came_with_a_reply_are_there_without_waiting(client: XenstoreClient) -> None:
    """They make no descriptor readable: a loop over select must ask events() before it waits."""
    client.watch("/a", "t")
    client.write("/a", "1")
    client.read("/a")
    assert list(client.events()) == [("/a", "t")] * 2
    assert list(client.events()) == []


def test_next_event_waits(daemon: Daemon, client: XenstoreClient) -> None:
    client.watch("/a", "t")
    assert client.next_event(1.0) == ("/a", "t")
    assert client.next_event(0.01) is None
    with daemon.client() as other:
        threading.Timer(0.05, other.write, ("/a/b", "1")).start()
        assert client.next_event(5.0) == ("/a/b", "t")


def test_transaction_is_tried_again_after_a_conflict(daemon: Daemon, client: XenstoreClient) -> None:
    client.write("/counter", "1")
    attempts = []
    with daemon.client() as other:

        def increment(tx_id: int) -> int:
            value = int(client.read("/counter", tx_id=tx_id)) + 1
            if not attempts:
                other.write("/counter", "10")
            attempts.append(value)
            client.write("/counter", str(value), tx_id=tx_id)
            return value

        assert client.transaction(increment) == 11
    assert attempts == [2, 11]
    assert client.read_text("/counter") == "11"


def test_transaction_that_raises_changes_nothing(client: XenstoreClient) -> None:
    def fail(tx_id: int) -> None:
        client.write("/x", "1", tx_id=tx_id)
        raise KeyError

    with pytest.raises(KeyError):
        client.transaction(fail)
    assert client.read_optional("/x") is None


def test_a_daemon_that_goes_away_is_reported(client: XenstoreClient, daemon: Daemon) -> None:
    daemon.connections[0].sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ConnectionLostError):
        client.read("/a")
    with pytest.raises(ConnectionLostError):
        client.next_event(1.0)


def test_events_that_came_with_a_reply_wake_who_sleeps(client: XenstoreClient) -> None:
    """Issue 5: a back end that was killed stayed at InitWait. It slept over an event that it had received already."""
    client.watch("/a", "t")
    list(client.events())
    poll = select.poll()
    poll.register(client.fileno(), select.POLLIN)
    for number in range(50):
        client.write("/a/state", str(number))
        assert client.read("/a/state") == b"%d" % number  # the event comes before this reply
        assert poll.poll(0), "the event waits, and nothing tells of it"
        assert ("/a/state", "t") in list(client.events())
        assert not poll.poll(0), "nothing waits any more"
        client.write("/a/state", "next")
        client.read("/a/state")
        assert client.next_event(0) == ("/a/state", "t")
        assert not poll.poll(0)
