"""The connection: transport, hypercall buffer, and what happens when the other end misbehaves."""

import os
import socket
import threading
from pathlib import Path

import pytest

from ring3.abi import errno, xen
from ring3.abi.xen import PAGE_SIZE
from ring3.errors import ConnectionLostError, HypercallError
from ring3.libs import xenversion
from ring3.libs.connection import GREETING, Connection
from unit.libs.fake_hypervisor import FakeHypervisor


def test_greeting_names_the_machine(conn: Connection, hypervisor: FakeHypervisor) -> None:
    assert conn.nr_frames == hypervisor.nr_frames
    assert conn.connection_id == 7
    assert len(conn.shared_info) == 4096


def test_a_value_comes_back(conn: Connection) -> None:
    assert xenversion.version(conn) == (4, 17)


def test_strings_and_structures_come_back_through_the_buffer(conn: Connection) -> None:
    assert xenversion.extraversion(conn) == ".5-fake"
    assert xenversion.capabilities(conn) == ["xen-3.0-x86_64"]
    assert xenversion.features(conn) == 1 << 5 | 1 << 7


def test_negative_results_raise_with_the_call_named(conn: Connection) -> None:
    with pytest.raises(HypercallError) as caught:
        conn.hypercall(63, 1, subop=2)
    assert (caught.value.errno, caught.value.op, caught.value.subop) == (errno.ENOSYS, 63, 2)
    assert "ENOSYS" in str(caught.value)


def test_handle_zero_is_null(conn: Connection) -> None:
    with pytest.raises(HypercallError) as caught:
        conn.hypercall(xen.__HYPERVISOR_domctl, 0)
    assert caught.value.errno == errno.EFAULT


def test_arena_never_hands_out_the_null_handle_and_nests(conn: Connection) -> None:
    with conn.arena() as arena:
        outer = arena.put(b"outer")
        assert outer.handle >= 16
        with conn.arena() as nested:
            inner = nested.put(b"inner")
            assert inner.handle >= outer.handle + 5
        assert arena.alloc(1).handle == inner.handle
        assert outer.bytes() == b"outer"
    with conn.arena() as arena:
        assert arena.alloc(8).handle == outer.handle


def test_a_trimmed_buffer_keeps_its_slots_and_nothing_else(conn: Connection) -> None:
    with conn.arena() as arena:
        kept = arena.keep(16)
        kept.view[:] = b"k" * 16
        used = arena.put(b"u" * 5000)
        free = arena.alloc(arena.nr_free_bytes)
        free.view[:] = b"f" * len(free.view)
        before = os.fstat(conn._fds[1]).st_blocks
    with conn.arena() as arena:
        arena.alloc(len(used.view))
        conn.trim()
        assert os.fstat(conn._fds[1]).st_blocks < before // 8
        assert (kept.bytes(), used.bytes()) == (b"k" * 16, b"u" * 5000)
        assert set(free.view[PAGE_SIZE:-PAGE_SIZE]) == {0}


def test_arena_refuses_more_than_the_buffer_has(conn: Connection) -> None:
    with conn.arena() as arena:
        free = arena.nr_free_bytes
        with pytest.raises(MemoryError):
            arena.alloc(free + 1)
        arena.alloc(free)
        assert arena.nr_free_bytes == 0


def test_threads_share_a_connection(conn: Connection) -> None:
    results: list[tuple[int, int]] = []

    def ask() -> None:
        for _ in range(50):
            results.append(xenversion.version(conn))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(4, 17)] * 200


def test_six_arguments_are_a_mistake_of_the_caller(conn: Connection) -> None:
    with pytest.raises(TypeError):
        conn.hypercall(1, 1, 2, 3, 4, 5, 6)


def test_a_closed_connection_says_so(conn: Connection) -> None:
    conn.close()
    conn.close()
    assert conn.is_closed
    with pytest.raises(ConnectionLostError):
        conn.hypercall(xen.__HYPERVISOR_xen_version, 0)


def test_a_foreign_reply_ends_the_connection(conn: Connection, hypervisor: FakeHypervisor) -> None:
    hypervisor.lie_about_cookie = True
    with pytest.raises(ConnectionLostError):
        xenversion.version(conn)
    assert conn.is_closed


def test_no_hypervisor(tmp_path: Path) -> None:
    with pytest.raises(ConnectionLostError, match="nothing"):
        Connection.connect(tmp_path / "nothing")


@pytest.mark.parametrize(
    "greeting", [b"", b"short", GREETING.pack(1, 1, 1, 1, 1, 1), GREETING.pack(0x334E4952, 2, 1, 4096, 1, 0)]
)
def test_a_greeting_of_something_else(tmp_path: Path, greeting: bytes) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            peer, _ = listener.accept()
            with peer, open("/dev/zero", "rb") as zero:
                if greeting:
                    socket.send_fds(peer, [greeting], [zero.fileno()] * 3)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConnectionLostError):
            Connection.connect(path)
        thread.join()
