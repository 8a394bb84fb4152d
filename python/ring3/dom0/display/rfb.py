"""The server's side of RFB 3.8 (VNC). No I/O. Source: RFC 6143; the community's RFB protocol for QEMU's keys.

Bytes go in by receive(), which returns what the client asks for; what is to be sent is returned by the other methods.
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, TypeAlias

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

VERSION: Final = b"RFB 003.008\n"
_VERSIONS: Final = {b"RFB 003.003\n": 3, b"RFB 003.007\n": 7, b"RFB 003.008\n": 8}
_NONE, _VNC = 1, 2
_RAW, _DESKTOP_SIZE, _EXTENDED_KEYS = 0, -223, -258
_PIXEL_FORMAT: Final = struct.Struct(">BBBBHHHBBB3x")
_CUT_TEXT_BYTES_MAX: Final = 1 << 16
_NR_ENCODINGS_MAX: Final = 256


class RfbError(Exception):
    """The client does not speak RFB, or may not come in."""


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How the client wants its pixels."""

    bits: int = 32
    depth: int = 24
    is_big_endian: bool = False
    is_true_colour: bool = True
    maxima: tuple[int, int, int] = (255, 255, 255)
    shifts: tuple[int, int, int] = (16, 8, 0)

    def pack(self) -> bytes:
        """Returns its 16 bytes."""
        return _PIXEL_FORMAT.pack(
            self.bits, self.depth, self.is_big_endian, self.is_true_colour, *self.maxima, *self.shifts
        )

    @classmethod
    def parse(cls, data: bytes) -> PixelFormat:
        """Returns it. Raises RfbError for one that cannot be."""
        bits, depth, big, true_colour, *rest = _PIXEL_FORMAT.unpack(data)
        maxima, shifts = tuple(rest[:3]), tuple(rest[3:])
        if bits not in (8, 16, 32) or any(shift >= bits for shift in shifts) or not true_colour:
            raise RfbError(f"a pixel format of {bits} bits, true colour {true_colour}")
        return cls(bits, depth, bool(big), True, (maxima[0], maxima[1], maxima[2]), (shifts[0], shifts[1], shifts[2]))


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """The client wants a part of the picture: what has changed of it, or all."""

    is_incremental: bool
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class KeyEvent:
    """A key, by its X11 keysym; or by its scancode, of the PC/XT set, if that is not 0."""

    is_pressed: bool
    keysym: int
    scancode: int = 0


@dataclass(frozen=True, slots=True)
class PointerEvent:
    """Where the pointer is, and the buttons that are down, one bit each."""

    buttons: int
    x: int
    y: int


Wish: TypeAlias = UpdateRequest | KeyEvent | PointerEvent


class _State(Enum):
    VERSION = auto()
    SECURITY = auto()
    CHALLENGE = auto()
    INIT = auto()
    NORMAL = auto()


@dataclass(slots=True)
class RfbServer:
    """One connection. `password` at most 8 bytes; without one anybody is let in."""

    width: int
    height: int
    name: str
    password: bytes = b""
    format: PixelFormat = field(default_factory=PixelFormat)
    can_resize: bool = False
    """The client understands when the picture gets another size."""
    owes_key_news: bool = False
    """The client is to be told that it may send scancodes."""
    outgoing: bytearray = field(default_factory=lambda: bytearray(VERSION))
    _state: _State = _State.VERSION
    _minor: int = 8
    _incoming: bytearray = field(default_factory=bytearray)
    _challenge: bytes = b""

    @property
    def is_ready(self) -> bool:
        """Whether the picture may be sent."""
        return self._state is _State.NORMAL

    def receive(self, data: bytes) -> list[Wish]:
        """Takes bytes of the client; returns what it wants. Raises RfbError: it gets `outgoing`, and ends."""
        self._incoming += data
        wishes: list[Wish] = []
        while self._step(wishes):
            pass
        return wishes

    def update(self, rects: list[tuple[int, int, int, int, bytes]]) -> bytes:
        """Returns an update of rectangles: place, size, and pixels as the client wants them."""
        parts = [struct.pack(">BxH", 0, len(rects) + self.owes_key_news)]
        if self.owes_key_news:
            self.owes_key_news = False
            parts.append(struct.pack(">HHHHi", 0, 0, 0, 0, _EXTENDED_KEYS))
        for x, y, width, height, pixels in rects:
            parts += [struct.pack(">HHHHi", x, y, width, height, _RAW), pixels]
        return b"".join(parts)

    def resized(self, width: int, height: int) -> bytes:
        """Returns the update that says that the picture has another size."""
        self.width, self.height = width, height
        return struct.pack(">BxHHHHHi", 0, 1, 0, 0, width, height, _DESKTOP_SIZE)

    def _step(self, wishes: list[Wish]) -> bool:
        steps: dict[_State, Callable[[list[Wish]], bool]] = {
            _State.VERSION: self._version,
            _State.SECURITY: self._security,
            _State.CHALLENGE: self._answer,
            _State.INIT: self._init,
            _State.NORMAL: self._message,
        }
        return steps[self._state](wishes)

    def _take(self, nr_bytes: int) -> bytes | None:
        if len(self._incoming) < nr_bytes:
            return None
        data = bytes(self._incoming[:nr_bytes])
        del self._incoming[:nr_bytes]
        return data

    # -- the handshake

    def _version(self, _wishes: list[Wish]) -> bool:
        data = self._take(len(VERSION))
        if data is None:
            return False
        if not data.startswith(b"RFB 003."):
            raise RfbError(f"{data!r} is no version of RFB")
        self._minor = _VERSIONS.get(data, 3 if data < VERSION else 8)
        kind = _VNC if self.password else _NONE
        if self._minor == 3:  # the server decides
            self.outgoing += struct.pack(">I", kind)
            self._begin(kind)
        else:
            self.outgoing += bytes((1, kind))
            self._state = _State.SECURITY
        return True

    def _security(self, _wishes: list[Wish]) -> bool:
        data = self._take(1)
        if data is None:
            return False
        if data[0] != (_VNC if self.password else _NONE):
            self._refuse("that security type was not offered")
        self._begin(data[0])
        return True

    def _begin(self, kind: int) -> None:
        if kind == _VNC:
            self._challenge = os.urandom(16)
            self.outgoing += self._challenge
            self._state = _State.CHALLENGE
            return
        if self._minor >= 8:
            self.outgoing += struct.pack(">I", 0)
        self._state = _State.INIT

    def _answer(self, _wishes: list[Wish]) -> bool:
        data = self._take(16)
        if data is None:
            return False
        # Each byte of the key with its bits in the other order. Source: RFC 6143 errata; what all clients do.
        key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in self.password[:8].ljust(8, b"\0"))
        # DES, which is what this protocol has, is 3DES with one key thrice.
        encryptor = Cipher(TripleDES(key * 3), modes.ECB()).encryptor()  # noqa: S305
        if not hmac.compare_digest(data, encryptor.update(self._challenge) + encryptor.finalize()):
            self._refuse("wrong password")
        self.outgoing += struct.pack(">I", 0)
        self._state = _State.INIT
        return True

    def _refuse(self, reason: str) -> None:
        self.outgoing += struct.pack(">I", 1)
        if self._minor >= 8:
            self.outgoing += struct.pack(">I", len(reason)) + reason.encode()
        raise RfbError(reason)

    def _init(self, _wishes: list[Wish]) -> bool:
        if self._take(1) is None:  # whether to share the display, which we do always
            return False
        name = self.name.encode()
        self.outgoing += struct.pack(">HH", self.width, self.height) + self.format.pack()
        self.outgoing += struct.pack(">I", len(name)) + name
        self._state = _State.NORMAL
        return True

    # -- what the client says afterwards

    def _message(self, wishes: list[Wish]) -> bool:
        if not self._incoming:
            return False
        match self._incoming[0]:
            case 0:
                data = self._take(20)
                if data is not None:
                    self.format = PixelFormat.parse(data[4:])
            case 2:
                return self._set_encodings()
            case 3:
                data = self._take(10)
                if data is not None:
                    wishes.append(UpdateRequest(bool(data[1]), *struct.unpack_from(">HHHH", data, 2)))
            case 4:
                data = self._take(8)
                if data is not None:
                    wishes.append(KeyEvent(bool(data[1]), struct.unpack_from(">I", data, 4)[0]))
            case 5:
                data = self._take(6)
                if data is not None:
                    wishes.append(PointerEvent(*struct.unpack_from(">BHH", data, 1)))
            case 6:
                return self._cut_text()
            case 255:
                return self._qemu(wishes)
            case kind:
                raise RfbError(f"a message of type {kind}")
        return data is not None

    def _set_encodings(self) -> bool:
        if len(self._incoming) < 4:
            return False
        nr = struct.unpack_from(">H", self._incoming, 2)[0]
        if nr > _NR_ENCODINGS_MAX:
            raise RfbError(f"{nr} encodings")
        data = self._take(4 + 4 * nr)
        if data is None:
            return False
        encodings = struct.unpack_from(f">{nr}i", data, 4)
        self.can_resize = _DESKTOP_SIZE in encodings
        self.owes_key_news = _EXTENDED_KEYS in encodings
        return True

    def _qemu(self, wishes: list[Wish]) -> bool:
        """Takes QEMU's Extended Key Event."""
        if len(self._incoming) >= 2 and self._incoming[1] != 0:
            raise RfbError(f"a message of type 255, {self._incoming[1]}")
        data = self._take(12)
        if data is not None:
            is_pressed, keysym, scancode = struct.unpack_from(">HII", data, 2)
            wishes.append(KeyEvent(bool(is_pressed), keysym, scancode))
        return data is not None

    def _cut_text(self) -> bool:
        """Takes the client's clipboard, for which domains have no use."""
        if len(self._incoming) < 8:
            return False
        nr_bytes = struct.unpack_from(">I", self._incoming, 4)[0]
        if nr_bytes > _CUT_TEXT_BYTES_MAX:
            raise RfbError(f"{nr_bytes} bytes of clipboard")
        return self._take(8 + nr_bytes) is not None
