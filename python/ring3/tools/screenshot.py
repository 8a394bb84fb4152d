"""`ring3 screenshot`: the picture of a domain's framebuffer as a PNG file."""

from __future__ import annotations

from pathlib import Path

from ring3.abi.fbif import Geometry
from ring3.errors import ConfigError, Error, GuestError
from ring3.libs.device import Device
from ring3.libs.framebuffer import Framebuffer
from ring3.tools import rundir
from ring3.tools.toolstack import Toolstack


def screenshot(name: str, target: Path) -> int:
    """Writes the picture as it is now."""
    from PIL import Image

    with Toolstack(rundir.default()) as toolstack:
        domain = toolstack.find(name)
        store, front = toolstack.xenstore, Device("vfb", domain.domid, 0).front
        if store.read_optional(f"{front}/state") is None:
            raise ConfigError(f"{domain.name} has no framebuffer", key="domain")
        page_ref = store.read_optional(f"{front}/page-ref") or ""
        if not page_ref.isdecimal() or len(page_ref) > 16:
            raise Error(f"the framebuffer of {domain.name} is not in use: its kernel has not connected it")
        try:
            framebuffer = Framebuffer(toolstack.conn, domain.domid, int(page_ref))
            text = store.read_optional(f"{Device('vfb', domain.domid, 0).back}/geometry")
            if text:
                framebuffer.set_geometry(Geometry(*map(int, text.split())))
            geometry = framebuffer.geometry
            pixels = framebuffer.lines(0, geometry.height)
        except GuestError as error:
            raise Error(str(error)) from error
    mode = "BGRX" if geometry.depth in (24, 32) else "BGR;16"
    size = (geometry.width, geometry.height)
    Image.frombuffer("RGB", size, pixels, "raw", mode, geometry.stride, 1).save(target, "PNG")
    return 0
