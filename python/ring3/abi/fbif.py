"""Framebuffer and keyboard: the pages that front ends share. Source: xen/include/public/io/fbif.h, kbdif.h.

A front end may write anything at any time: what is read here is a copy, and to be checked.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

EVENT_BYTES: Final = 40
IN_OFFSET, IN_LENGTH = 1024, 1024 // EVENT_BYTES
OUT_OFFSET, OUT_LENGTH = 2048, 2048 // EVENT_BYTES
KBD_IN_OFFSET, KBD_IN_LENGTH = 1024, 2048 // EVENT_BYTES
IN_CONS_OFFSET, IN_PROD_OFFSET, OUT_CONS_OFFSET = 0, 4, 8
_FB_HEAD: Final = struct.Struct("<IIIIiiIIB7x")
_PD_OFFSET: Final = 40
"""struct xenfb_page: `pd` follows `depth`, aligned."""
NR_PD: Final = 256
_RECT: Final = struct.Struct("<B3xiiii")
_RESIZE: Final = struct.Struct("<B3xiiiii")
_TYPE_UPDATE, _TYPE_RESIZE = 2, 3

_KEY: Final = struct.Struct("<BB2xI")
_MOTION: Final = struct.Struct("<B3xiii")
_TYPE_MOTION, _TYPE_KEY, _TYPE_POS = 1, 3, 4

WIDTH_MAX, HEIGHT_MAX = 8192, 8192
MEMORY_BYTES_MAX: Final = 64 << 20
"""Ours: the protocol could say 512 MiB."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the pixels are: `offset` and `stride` in bytes, `depth` in bits."""

    width: int
    height: int
    stride: int
    depth: int
    offset: int = 0

    def check(self, nr_bytes: int) -> str | None:
        """Returns what is wrong with it for a framebuffer of that size; None if nothing is."""
        if not (0 < self.width <= WIDTH_MAX and 0 < self.height <= HEIGHT_MAX):
            return f"{self.width}x{self.height} pixels"
        if self.depth not in (16, 24, 32):
            return f"a depth of {self.depth} bits"
        if self.stride < self.width * self.pixel_bytes or self.offset < 0:
            return f"lines of {self.stride} bytes at {self.offset}"
        if self.offset + self.stride * self.height > nr_bytes:
            return f"{self.width}x{self.height} pixels in {nr_bytes} bytes"
        return None

    @property
    def pixel_bytes(self) -> int:
        """Bytes of one pixel: 24 bits of colour come in 32."""
        return 4 if self.depth in (24, 32) else self.depth // 8


@dataclass(frozen=True, slots=True)
class Update:
    """A part of the picture that has changed."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class FramebufferPage:
    """What the shared page of a framebuffer says."""

    in_cons: int
    in_prod: int
    out_cons: int
    out_prod: int
    geometry: Geometry
    mem_length: int
    pd: tuple[int, ...]

    @classmethod
    def parse(cls, page: bytes) -> FramebufferPage:
        """Returns it; nothing is checked yet."""
        in_cons, in_prod, out_cons, out_prod, width, height, stride, length, depth = _FB_HEAD.unpack_from(page)
        pd = struct.unpack_from(f"<{NR_PD}Q", page, _PD_OFFSET)
        return cls(in_cons, in_prod, out_cons, out_prod, Geometry(width, height, stride, depth), length, pd)


def out_events(page: bytes, cons: int, prod: int) -> list[Update | Geometry]:
    """Returns the events between two indices that are at most OUT_LENGTH apart; those of unknown types are left out."""
    found: list[Update | Geometry] = []
    for index in range(prod - cons & 0xFFFFFFFF):
        at = OUT_OFFSET + (cons + index & 0xFFFFFFFF) % OUT_LENGTH * EVENT_BYTES
        match page[at]:
            case kind if kind == _TYPE_UPDATE:
                found.append(Update(*_RECT.unpack_from(page, at)[1:]))
            case kind if kind == _TYPE_RESIZE:
                found.append(Geometry(*_RESIZE.unpack_from(page, at)[1:]))
    return found


def key(code: int, *, is_pressed: bool) -> bytes:
    """Returns the event of a key or button, by its number in linux/input-event-codes.h."""
    return _KEY.pack(_TYPE_KEY, is_pressed, code).ljust(EVENT_BYTES, b"\0")


def position(x: int, y: int, wheel: int) -> bytes:
    """Returns the event that says where the pointer is, and how the wheel was turned."""
    return _MOTION.pack(_TYPE_POS, x, y, wheel).ljust(EVENT_BYTES, b"\0")


def motion(dx: int, dy: int, wheel: int) -> bytes:
    """Returns the event that says how the pointer was moved."""
    return _MOTION.pack(_TYPE_MOTION, dx, dy, wheel).ljust(EVENT_BYTES, b"\0")
