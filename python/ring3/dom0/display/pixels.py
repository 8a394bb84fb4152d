"""Pixels of a framebuffer as a VNC client wants them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from ring3.abi.fbif import Geometry
from ring3.dom0.display.rfb import PixelFormat

if TYPE_CHECKING:
    from PIL.Image import Image

_FULL: Final = (255, 255, 255)
_PACKERS: Final = {
    (False, (16, 8, 0)): "BGRX",
    (False, (0, 8, 16)): "RGBX",
    (False, (24, 16, 8)): "XBGR",
    (True, (16, 8, 0)): "XRGB",
    (True, (24, 16, 8)): "RGBX",
    (True, (0, 8, 16)): "XBGR",
}
"""(Big-endian, shifts of red, green, blue) to the order of bytes, for formats of 32 bits."""


def convert(lines: bytes, geometry: Geometry, x: int, width: int, wanted: PixelFormat) -> bytes:
    """Returns a rectangle, `width` pixels from `x` on of each line."""
    nr_lines = len(lines) // geometry.stride
    if geometry.depth in (24, 32) and (wanted.bits, wanted.maxima) == (32, _FULL):
        packer = _PACKERS.get((wanted.is_big_endian, wanted.shifts))
        if packer == "BGRX":  # as the framebuffer has them
            if x == 0 and geometry.stride == 4 * width:
                return lines
            places = range(4 * x, len(lines), geometry.stride)
            return b"".join(lines[place : place + 4 * width] for place in places)
        if packer is not None:
            return _picture(lines, geometry, nr_lines).crop((x, 0, x + width, nr_lines)).tobytes("raw", packer)
    return _any(_picture(lines, geometry, nr_lines).crop((x, 0, x + width, nr_lines)), wanted)


def _picture(lines: bytes, geometry: Geometry, nr_lines: int) -> Image:
    from PIL import Image  # large, and most clients take what there is

    mode = "BGRX" if geometry.depth in (24, 32) else "BGR;16"
    return Image.frombuffer("RGB", (geometry.width, nr_lines), lines, "raw", mode, geometry.stride, 1)


def _any(picture: Image, wanted: PixelFormat) -> bytes:
    tables = [
        [(value * maximum + 127) // 255 << shift for value in range(256)]
        for maximum, shift in zip(wanted.maxima, wanted.shifts, strict=True)
    ]
    planes = [picture.getchannel(name).tobytes() for name in "RGB"]
    red, green, blue = tables
    limit = (1 << wanted.bits) - 1
    values = [(red[r] | green[g] | blue[b]) & limit for r, g, b in zip(*planes, strict=True)]
    letter = {8: "B", 16: "H", 32: "I"}[wanted.bits]
    return struct.pack(f"{'>' if wanted.is_big_endian else '<'}{len(values)}{letter}", *values)
