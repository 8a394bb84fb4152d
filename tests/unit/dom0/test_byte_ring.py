"""Rings shared with a guest that may write anything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring3.dom0.byte_ring import ByteRing
from ring3.errors import RingError

CONS, PROD = 64, 68


def make_ring(start: int = 0) -> tuple[ByteRing, memoryview]:
    page = memoryview(bytearray(72))
    for offset in (CONS, PROD):
        page[offset : offset + 4] = start.to_bytes(4, "little")
    return ByteRing(page, 7, data_offset=0, size=64, cons_offset=CONS, prod_offset=PROD), page


@given(st.integers(0, 2**32 - 1), st.lists(st.tuples(st.binary(max_size=100), st.integers(0, 100))))
def test_bytes_come_out_in_order_whatever_the_indices(start: int, steps: list[tuple[bytes, int]]) -> None:
    ring, _page = make_ring(start)
    sent, received = b"", b""
    for data, nr_read in steps:
        sent += data[: ring.write(data)]
        received += ring.read(nr_read)
    received += ring.read(64)
    assert received == sent
    assert ring.is_empty()


def test_a_full_ring_takes_nothing_more() -> None:
    ring, _page = make_ring()
    assert ring.write(bytes(100)) == 64
    assert ring.write(b"x") == 0


@pytest.mark.parametrize(("cons", "prod"), [(0, 65), (1, 0), (0, 0x80000000)])
def test_impossible_indices_raise(cons: int, prod: int) -> None:
    ring, page = make_ring()
    page[CONS : CONS + 4] = cons.to_bytes(4, "little")
    page[PROD : PROD + 4] = prod.to_bytes(4, "little")
    with pytest.raises(RingError) as caught:
        ring.read(1)
    assert caught.value.domid == 7
    with pytest.raises(RingError):
        ring.write(b"x")
