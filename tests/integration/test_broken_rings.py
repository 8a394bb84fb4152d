"""Front ends of framebuffers and shares, made by hand, that break the protocol: they end, and may begin anew."""

import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ring3.abi.fbif import _FB_HEAD, _PD_OFFSET
from ring3.dom0.p9.ring import _ORDER, _OUT_PROD, _REFS
from ring3.libs.device import Device
from ring3.tools.devices import bus
from ring3.tools.devices.p9 import P9
from ring3.tools.devices.vfb import Vfb
from support.bare_domain import GREF, BareDomain, bare_domain
from support.command import Ring3

pytestmark = pytest.mark.guest

RING, TABLE, PIXELS = 0, 1, 2


def _vfb(domain: BareDomain, out_prod: int) -> dict[str, str]:
    """A picture of 16 by 16 pixels in one page."""
    page = domain.pages[RING].view
    page[:] = bytes(4096)
    _FB_HEAD.pack_into(page, 0, 0, 0, 0, out_prod, 16, 16, 64, 4096, 32)
    struct.pack_into("<Q", page, _PD_OFFSET, domain.pages[TABLE].mfns[0])
    struct.pack_into("<Q", domain.pages[TABLE].view, 0, domain.pages[PIXELS].mfns[0])
    return {"page-ref": str(domain.pages[RING].mfns[0]), "protocol": "x86_64-abi"}


def _9pfs(domain: BareDomain, out_prod: int) -> dict[str, str]:
    """A ring of two pages."""
    page = domain.pages[RING].view
    page[:] = bytes(4096)
    struct.pack_into("<I", page, _OUT_PROD, out_prod)
    struct.pack_into("<I", page, _ORDER, 1)
    struct.pack_into("<2I", page, _REFS, GREF + TABLE, GREF + PIXELS)
    return {"num-rings": "1", "ring-ref0": str(GREF + RING), "version": "1"}


@pytest.mark.parametrize("wild", [0x10000, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize(("kind", "make"), [("vfb", _vfb), ("9pfs", _9pfs)])
def test_wild_index_ends_the_device_until_it_begins_anew(
    ring3: Ring3, tmp_path: Path, kind: str, make: Callable[[BareDomain, int], dict[str, str]], wild: int
) -> None:
    assert ring3("up", "--memory", "64").exit_code == 0
    with bare_domain(ring3) as domain:
        wanted: Vfb | P9 = Vfb.parse("vnc=1") if kind == "vfb" else P9.parse(f"tag=share,path={tmp_path}")
        bus.attach(domain.xenstore, domain.services, domain.domid, wanted)
        device = Device(kind, domain.domid, 0)

        def say(states: Sequence[str], out_prod: int) -> None:
            port = str(domain.events.alloc_unbound(0, domid=domain.domid))
            name = "event-channel" if kind == "vfb" else "event-channel-0"
            for key, value in {**make(domain, out_prod), name: port}.items():
                domain.xenstore.write(f"{device.front}/{key}", value)
            for state in states:
                domain.xenstore.write(f"{device.front}/state", state)

        domain.wait_for_state(device.back, "2")
        say(["3"], wild)
        domain.wait_for_state(device.back, "5")
        for _again in range(20):
            time.sleep(0.01)
            assert domain.xenstore.read_text(f"{device.back}/state") == "5"
        log = (domain.run_dir / ("displayd.log" if kind == "vfb" else "9pfsd.log")).read_text()
        assert log.count(f"of domain {domain.domid}: ") == 1, log
        domain.xenstore.write(f"{device.front}/state", "6")
        domain.wait_for_state(device.back, "6")
        domain.xenstore.write(f"{device.front}/state", "1")
        domain.wait_for_state(device.back, "2")
        say(["3"], 0)
        domain.wait_for_state(device.back, "4")
        domain.xenstore.write(f"{device.front}/state", "6")
        domain.wait_for_state(device.back, "6")
