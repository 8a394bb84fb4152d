"""A front end made by hand: every operation and both protocols, and what a hostile one may try."""

import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ring3.abi import blkif
from ring3.abi import grant_table as abi
from ring3.tools.devices import bus
from ring3.tools.devices.disk import Disk
from support.bare_domain import GREF, BareDomain, bare_domain
from support.command import Ring3
from support.waiting import wait_for

pytestmark = pytest.mark.guest

P64, P32 = blkif.PROTOCOLS["x86_64-abi"], blkif.PROTOCOLS["x86_32-abi"]
RING, DATA = 0, 1
NR_MIB = 4
FRONT, BACK = "/local/domain/{}/device/vbd/51712", "/local/domain/0/backend/vbd/{}/51712"


@dataclass
class Front:
    """A front end of a disk, in a domain that runs nothing."""

    domain: BareDomain
    protocol: blkif.Protocol = P64
    nr_asked: int = 0
    extra: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.xenstore, self.pages, self.run_dir = self.domain.xenstore, self.domain.pages, self.domain.run_dir
        self.path, self.back = FRONT.format(self.domain.domid), BACK.format(self.domain.domid)

    def grant(self, page: int, flags: int) -> None:
        self.domain.grant(page, flags)

    def flags(self, page: int) -> int:
        return self.domain.flags(page)

    def begin(self, protocol: blkif.Protocol = P64) -> None:
        """An empty ring."""
        self.protocol, self.nr_asked = protocol, 0
        self.pages[RING].view[:] = bytes(4096)
        struct.pack_into("<4I", self.pages[RING].view, 0, 0, 1, 0, 1)
        self.extra = {"protocol": "x86_64-abi" if protocol is P64 else "x86_32-abi"}

    def put(self, raw: bytes) -> None:
        start = 64 + self.nr_asked * self.protocol.slot_bytes
        self.pages[RING].view[start : start + len(raw)] = raw
        self.nr_asked += 1
        struct.pack_into("<I", self.pages[RING].view, 0, self.nr_asked)

    def move(self, operation: int, sector: int, *segments: tuple[int, int, int], count: int | None = None) -> None:
        head = self.protocol.request.pack(
            operation, len(segments) if count is None else count, 0, 1000 + self.nr_asked, sector
        )
        self.put(head + b"".join(blkif.SEGMENT.pack(*segment) for segment in segments))

    def connect(self, **keys: str) -> None:
        """Says what a front end says, and that it is there."""
        port = self.domain.events.alloc_unbound(0, domid=self.domain.domid)
        values = {"ring-ref": str(GREF + RING), "event-channel": str(port), **self.extra, **keys}
        for name, value in values.items():
            self.xenstore.write(f"{self.path}/{name}", value)
        self.xenstore.write(f"{self.path}/state", "3")

    def disconnect(self) -> None:
        for state in ("5", "6", "1"):
            self.xenstore.write(f"{self.path}/state", state)
        self.wait_for_state("2")

    def wait_for_state(self, *states: str) -> None:
        self.domain.wait_for_state(self.back, *states)

    def answers(self) -> list[tuple[int, int, int]]:
        """Waits for all answers; returns (id, operation, status) of each."""
        ring = self.pages[RING].view
        wait_for(lambda: struct.unpack_from("<I", ring, 8)[0] == self.nr_asked, "not all requests are answered")
        size = self.protocol.slot_bytes
        return [self.protocol.response.unpack_from(ring, 64 + slot * size) for slot in range(self.nr_asked)]

    def statuses(self) -> list[int]:
        found = self.answers()
        assert [number for number, _operation, _status in found] == [1000 + n for n in range(self.nr_asked)]
        return [status for _number, _operation, status in found]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(NR_MIB << 20))
    return path


@pytest.fixture
def front(ring3: Ring3, image: Path) -> Iterator[Front]:
    assert ring3("up", "--memory", "64").exit_code == 0
    with bare_domain(ring3) as domain:
        bus.attach(domain.xenstore, domain.services, domain.domid, Disk.parse(f"{image},raw,xvda,rw"))
        made = Front(domain)
        made.begin()
        yield made


@pytest.mark.parametrize("protocol", [P64, P32])
@pytest.mark.parametrize("persistent", ["0", "1"])
def test_every_operation(front: Front, image: Path, protocol: blkif.Protocol, persistent: str) -> None:
    before = image.read_bytes()
    front.begin(protocol)
    front.pages[DATA].view[:] = b"\x11" * 4096
    front.pages[4].view[:] = b"\x44" * 4096
    front.move(blkif.BLKIF_OP_READ, 8, (GREF + 2, 0, 7), (GREF + 3, 2, 3))
    front.move(blkif.BLKIF_OP_WRITE, 100, (GREF + DATA, 1, 2))
    front.move(blkif.BLKIF_OP_FLUSH_DISKCACHE, 0)
    front.move(blkif.BLKIF_OP_WRITE_BARRIER, 104, (GREF + DATA, 0, 0))
    front.move(blkif.BLKIF_OP_READ, 100, (GREF + 5, 0, 7))
    front.put(protocol.discard.pack(blkif.BLKIF_OP_DISCARD, 0, 0, 1005, 1024, 64))
    table = b"".join(blkif.SEGMENT.pack(GREF + 4, 0, 7) for _segment in range(20))
    front.pages[6].view[: len(table)] = table
    front.put(protocol.indirect.pack(6, 1, 20, 1006, 4096, 0, GREF + 6, *[0] * 7))
    front.connect(**{"feature-persistent": persistent})
    assert front.statuses() == [0] * 7
    assert [operation for _number, operation, _status in front.answers()] == [0, 1, 3, 2, 0, 5, 1]
    assert bytes(front.pages[2].view) == before[8 * 512 : 16 * 512]
    assert bytes(front.pages[3].view[1024:2048]) == before[16 * 512 : 18 * 512]
    after = image.read_bytes()
    assert after[100 * 512 : 102 * 512] == b"\x11" * 1024
    assert bytes(front.pages[5].view) == after[100 * 512 : 108 * 512]
    assert after[1024 * 512 : 1088 * 512] == bytes(64 * 512)
    assert after[4096 * 512 : (4096 + 160) * 512] == b"\x44" * 20 * 4096
    front.wait_for_state("4")
    held = abi.GTF_reading | abi.GTF_writing if persistent == "1" else 0
    assert front.flags(DATA) & (abi.GTF_reading | abi.GTF_writing) == held
    front.disconnect()
    assert not front.flags(DATA) & (abi.GTF_reading | abi.GTF_writing)


def test_requests_that_break_rules_fail_and_the_others_are_done(front: Front, image: Path) -> None:
    before = image.read_bytes()
    last = (NR_MIB << 11) - 1
    front.grant(20, abi.GTF_invalid)
    front.grant(21, abi.GTF_permit_access | abi.GTF_readonly)
    good = (GREF + 2, 0, 7)
    front.move(4, 0)  # no operation
    front.move(200, 0, good)
    front.move(0, last, good)  # beyond the end
    front.move(0, (1 << 64) - 1, good)
    front.move(1, 0, (GREF + 20, 0, 7))  # not granted
    front.move(0, 0, (GREF + 21, 0, 7))  # granted for reading alone
    front.move(0, 0, (1 << 31, 0, 7))
    front.move(0, 0, (GREF + 2, 7, 0))
    front.move(0, 0, (GREF + 2, 0, 8))
    front.move(0, 0, (GREF + 2, 0, 255))
    front.move(0, 0)
    front.move(1, 0, *[good] * 11, count=12)
    front.move(1, 0, *[good] * 11, count=255)
    front.put(P64.discard.pack(5, 0, 0, 1013, last, 1 << 63))
    front.put(P64.indirect.pack(6, 1, 0, 1014, 0, 0, *[GREF + 2] * 8))
    front.put(P64.indirect.pack(6, 1, 0xFFFF, 1015, 0, 0, *[GREF + 2] * 8))
    front.put(P64.indirect.pack(6, 6, 3, 1016, 0, 0, *[GREF + 2] * 8))
    front.put(P64.indirect.pack(6, 1, 3, 1017, 0, 0, GREF + 20, *[0] * 7))
    front.pages[7].view[:] = b"\xff" * 4096
    front.put(P64.indirect.pack(6, 1, 3, 1018, 0, 0, GREF + 7, *[0] * 7))
    front.move(1, 0, good, (GREF + 20, 0, 7))  # the second page is bad: nothing is written
    front.pages[3].view[:] = b"\x33" * 4096
    for _again in range(4):  # all at once to the same place
        front.move(1, 64, (GREF + 3, 0, 7), (GREF + 3, 0, 7))
    front.move(0, 64, (GREF + 5, 0, 7))
    front.connect()
    nr_bad = front.nr_asked - 2 - 5
    assert front.statuses() == [blkif.BLKIF_RSP_EOPNOTSUPP] * 2 + [blkif.BLKIF_RSP_ERROR] * nr_bad + [0] * 5
    assert bytes(front.pages[5].view) == b"\x33" * 4096
    after = image.read_bytes()
    assert after[: 64 * 512] == before[: 64 * 512]
    assert len(after) == len(before)


def test_requests_that_overlap_change_nothing_beside_them(front: Front, image: Path) -> None:
    """Eight writes under way at once, each two sectors further: a sector is whole, and of one that covers it."""
    before = image.read_bytes()
    first, nr_writes = 200, 8
    front.begin()
    for number in range(nr_writes):
        front.pages[2 + number].view[:] = bytes([number]) * 4096
        front.move(1, first + 2 * number, (GREF + 2 + number, 0, 7))
        front.move(0, first + 2 * number, (GREF + 20 + number, 0, 7))
    front.connect()
    assert front.statuses() == [0] * 2 * nr_writes
    after = image.read_bytes()
    end = first + 2 * (nr_writes - 1) + 8
    assert (after[: first * 512], after[end * 512 :]) == (before[: first * 512], before[end * 512 :])
    for sector in range(first, end):
        covering = [number for number in range(nr_writes) if 0 <= sector - first - 2 * number < 8]
        assert after[sector * 512 : (sector + 1) * 512] in [bytes([number]) * 512 for number in covering]


@pytest.mark.parametrize("req_prod", [33, 1000, 0x80000000, 0xFFFFFFFF])
def test_wild_index_ends_this_disk_only(front: Front, req_prod: int) -> None:
    struct.pack_into("<I", front.pages[RING].view, 0, req_prod)
    pid = _pid(front)
    front.connect()
    wait_for(lambda: front.xenstore.read_optional(f"{front.back}/state") in ("5", "6"), "the disk goes on")
    assert not front.flags(RING) & abi.GTF_writing, "nothing of it is mapped"
    assert f"vbd 51712 of domain {front.domain.domid}: " in (front.run_dir / "block.log").read_text()
    front.begin()
    front.disconnect()
    front.move(0, 0, (GREF + 2, 0, 7))
    front.connect()
    assert front.statuses() == [0]
    assert _pid(front) == pid, "the service has not ended over it"


def test_nonsense_in_every_key(front: Front) -> None:
    pid = _pid(front)
    for name, values in {
        "ring-ref": ["", "-1", "x", "4294967296", "9" * 300, "20000", "\xff"],
        "event-channel": ["", "0", "65536", "4294967295", "none"],
        "protocol": ["", "x86_16-abi", "\0", "A" * 1000],
        "ring-page-order": ["-1", "5", "31", "4294967295", "x", "1"],
        "num-ring-pages": ["0", "3", "64", "x"],
        "multi-queue-num-queues": ["0", "5", "4294967295", "-1", "2"],
        "feature-persistent": ["", "2", "x", "9" * 300],
    }.items():
        for value in values:
            front.connect(**{name: value})
            # An empty protocol is the native one, and what does not say 1 has no persistent grants.
            is_harmless = (name, value) == ("protocol", "") or name == "feature-persistent"
            front.wait_for_state(*("4" if is_harmless else "56"))
            front.xenstore.rm(f"{front.path}/{name}")
            front.disconnect()
    for state in ("", "x", "-1", "99", "7", "8", "7" * 300, "0"):
        front.xenstore.write(f"{front.path}/state", state)
    front.xenstore.write(f"{front.path}/state", "6")
    front.xenstore.write(f"{front.path}/state", "1")
    front.move(0, 0, (GREF + 2, 0, 7))
    front.connect()
    assert front.statuses() == [0]
    assert _pid(front) == pid, "the service has not ended over it"


def test_front_end_that_goes_away_takes_nothing_along(front: Front) -> None:
    front.move(0, 0, (GREF + 2, 0, 7))
    front.connect()
    front.statuses()
    front.xenstore.rm(front.path)
    wait_for(lambda: not front.flags(RING) & abi.GTF_writing, "its ring is mapped still")


@pytest.mark.parametrize("state", ["3", "4"])
def test_disk_is_served_until_its_front_end_lets_go(front: Front, state: str) -> None:
    """Issue 5: detached while Linux looked for partitions, before it was Connected, it waited for ever."""
    front.move(0, 0, (GREF + 2, 0, 7))
    front.connect()
    front.wait_for_state("4")
    assert front.statuses() == [0]
    front.xenstore.write(f"{front.path}/state", state)
    bus.close(front.xenstore, front.domain.domid, "vbd", int(front.path.rpartition("/")[2]))
    for _again in range(20):
        time.sleep(0.02)
        assert front.xenstore.read_text(f"{front.back}/state") == "5"
        assert front.flags(RING) & abi.GTF_writing, "its ring is no longer mapped"
    front.xenstore.write(f"{front.path}/state", "6")
    front.wait_for_state("6")
    assert not front.flags(RING) & abi.GTF_writing


def test_killed_service_serves_on_what_was_asked_to_close(front: Front, image: Path) -> None:
    """A front end that has the disk mounted stays Connected, and needs its answers."""
    front.connect()
    front.wait_for_state("4")
    front.xenstore.write(f"{front.path}/state", "4")
    bus.close(front.xenstore, front.domain.domid, "vbd", 51712)
    pid = _pid(front)
    os.kill(pid, 9)
    front.move(0, 8, (GREF + 2, 0, 7))
    wait_for(lambda: _pid(front) != pid, "nobody came after it")
    assert front.statuses() == [0]
    assert bytes(front.pages[2].view) == image.read_bytes()[8 * 512 : 16 * 512]
    assert front.xenstore.read_text(f"{front.back}/state") == "5"
    front.xenstore.write(f"{front.path}/state", "6")
    front.wait_for_state("6")


def _pid(front: Front) -> int:
    return int((front.run_dir / "block.pid").read_text())
