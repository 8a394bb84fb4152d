"""What a user network writes to its passt, which reads in a way of its own."""

import multiprocessing
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ring3.dom0.net.kept import Kept
from ring3.dom0.net.packet import Packet
from ring3.dom0.net.rx import RxQueue
from ring3.dom0.net.tx import TxQueue
from ring3.dom0.net.user import UserNetwork
from ring3.dom0.net.vif import Features, Queue, Vif
from ring3.dom0.poller import Poller
from ring3.libs.device import Device

MAC = bytes.fromhex("00163e000001")
NR_PACKETS = 3000


class NoArea:
    """None is needed for what leaves."""


def read_all(sock: socket.socket) -> str:
    """Reads all that there is, again and again. Returns how many bytes of payload came, or that a frame was not whole:
    passt 2023-03 reads once more then, and what is not whole even so is lost, with all that came along.
    """
    nr_payload_bytes = 0
    buffer = memoryview(bytearray(NR_PACKETS * 62_000))
    while nr_read := sock.recv_into(buffer):
        view = buffer[:nr_read]
        while view:
            nr_bytes = struct.unpack("!I", view[:4])[0] if len(view) >= 4 else 0
            if not 0 < nr_bytes <= len(view) - 4:
                return f"{len(view)} bytes of a frame of {nr_bytes}"
            view = view[4 + nr_bytes :]
            nr_payload_bytes += nr_bytes - 54
    return str(nr_payload_bytes)


@pytest.fixture
def network(tmp_path: Path) -> Iterator[tuple[UserNetwork, Poller, socket.socket]]:
    poller = Poller()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        made = UserNetwork(tmp_path / "s", poller)
        assert made.connect(0.0)
        peer, _address = listener.accept()
    yield made, poller, peer
    made.close()
    peer.close()
    poller.close()


def large_packet(nr_bytes: int) -> Packet:
    """As it comes from the ring: its first page has a part of it, the others all that they can."""
    tcp = struct.pack("!HHIIBBHHH", 1000, 2000, 5_000, 9, 5 << 4, 0x10, 512, 0, 0)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, nr_bytes - 14, 7, 0, 64, 6, 0, bytes(4), bytes(4))
    data = memoryview(bytes(6) + MAC + b"\x08\x00" + ip + tcp + bytes(nr_bytes - 54))
    views = [data[:300], *(data[at : at + 4096] for at in range(300, nr_bytes, 4096))]
    return Packet([], nr_bytes, header=bytes(data[:256]), views=views)


class Buffers:
    """So many buffers; each packet gives its own back."""

    def __init__(self, nr: int) -> None:
        self.nr = nr

    def take_buffer(self, nr_bytes: int) -> tuple[int, memoryview] | None:
        self.nr -= 1
        if self.nr >= 0:
            return 0, memoryview(bytearray(nr_bytes))
        self.nr = 0
        return None

    def packet_in(self, _page: int, nr_bytes: int) -> Packet:
        return Packet([], nr_bytes, header=bytes(nr_bytes), release=lambda: self.give_buffer(0))

    def give_buffer(self, _page: int) -> None:
        self.nr += 1


@pytest.mark.parametrize("nr_buffers", [8, 100])
def test_what_has_waited_for_room_is_received_when_there_is_some(
    network: tuple[UserNetwork, Poller, socket.socket], nr_buffers: int
) -> None:
    """Issue 5: more than 24 datagrams at once, and nothing came any more unless the domain sent something."""
    user, _poller, peer = network
    vif = Vif(Device("vif", 1, 0), MAC, user, Buffers(nr_buffers), Kept(Path()))  # type: ignore[arg-type]
    rx = RxQueue(memoryview(bytearray(4096)), 1)
    vif.queues = [Queue(TxQueue(memoryview(bytearray(4096)), 1), rx, 1, 1, [])]
    user.vif = vif
    frame = bytes(1400)
    peer.sendall((struct.pack("!I", len(frame)) + frame) * 60)
    nr_received = 0
    for _turn in range(100):
        user.receive(0.0)
        nr_received += len(rx.waiting)
        assert user.has_more() is False or not rx.waiting, "no turn is of use before some are delivered"
        rx.drop_all()
        if not user.has_more():
            break
    assert nr_received == 60


@pytest.mark.parametrize("scatter", [False, True])
def test_front_end_that_takes_one_slot_gets_no_packets_of_more(
    network: tuple[UserNetwork, Poller, socket.socket], *, scatter: bool
) -> None:
    vif = Vif(Device("vif", 1, 0), MAC, network[0], NoArea(), Kept(Path()), features=Features(scatter=scatter))  # type: ignore[arg-type]
    rx = RxQueue(memoryview(bytearray(4096)), 1)
    vif.queues = [Queue(TxQueue(memoryview(bytearray(4096)), 1), rx, 1, 1, [])]
    for nr_bytes in (60, 4096, 4097, 9000):
        vif.deliver(Packet([], nr_bytes, header=bytes(60)), 0.0)
    assert [packet.nr_bytes for packet in rx.waiting] == ([60, 4096, 4097, 9000] if scatter else [60, 4096])


def test_reader_finds_whole_frames_or_none(
    network: tuple[UserNetwork, Poller, socket.socket],
) -> None:
    user, poller, peer = network
    vif = Vif(Device("vif", 1, 0), MAC, user, NoArea(), Kept(Path()))  # type: ignore[arg-type]
    user.vif = vif
    # A process of its own: it shall read while a message is being written.
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    reader = context.Process(target=lambda: results.put(read_all(peer)))
    reader.start()
    packet = large_packet(61_506)
    for _number in range(NR_PACKETS):
        user.forward(vif, packet, 0.0)
        user.flush()
        while packet.nr_users > 20 and reader.is_alive():
            poller.wait(0.1)
            user.flush()
    while packet.nr_users and reader.is_alive():
        poller.wait(0.1)
        user.flush()
    user.close()
    peer.shutdown(socket.SHUT_RDWR)  # the other process has inherited both ends
    reader.join(20)
    assert results.get() == str(NR_PACKETS * (61_506 - 54))
