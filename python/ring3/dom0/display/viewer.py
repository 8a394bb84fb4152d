"""A connected VNC client: what it has been sent, and what of the picture it does not have."""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from ring3.abi.fbif import Geometry, Update
from ring3.dom0.display.pixels import convert
from ring3.dom0.display.rfb import KeyEvent, PointerEvent, RfbError, RfbServer, UpdateRequest
from ring3.libs.framebuffer import Framebuffer

_CHUNK_BYTES: Final = 64 << 10


class Viewer:
    """One client. Its picture is as large as the framebuffer; before there is one, black."""

    def __init__(self, sock: socket.socket, width: int, height: int, name: str, password: bytes) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._rfb = RfbServer(width, height, name, password)
        self._dirty: tuple[int, int, int, int] | None = (0, 0, width, height)
        self._wanted: UpdateRequest | None = None

    def fileno(self) -> int:
        """Returns the socket's descriptor."""
        return self.sock.fileno()

    def has_unsent(self) -> bool:
        """Whether something waits for the client to take it."""
        return bool(self._rfb.outgoing)

    def receive(self) -> list[KeyEvent | PointerEvent] | None:
        """Returns what was typed and pointed; None when the client has gone, or is to go."""
        try:
            data = self.sock.recv(_CHUNK_BYTES)
            if not data:
                return None
            wishes = self._rfb.receive(data)
        except BlockingIOError:
            return []
        except RfbError:
            self.flush()  # the reason
            return None
        except OSError:
            return None
        for wish in wishes:
            if isinstance(wish, UpdateRequest):
                self._wanted = wish
                if not wish.is_incremental:
                    self.touch(Update(wish.x, wish.y, wish.width, wish.height))
        return [wish for wish in wishes if not isinstance(wish, UpdateRequest)]

    def touch(self, part: Update) -> None:
        """Notes that a part of the picture has changed."""
        left, top = max(0, part.x), max(0, part.y)
        right, bottom = min(self._rfb.width, part.x + part.width), min(self._rfb.height, part.y + part.height)
        if left >= right or top >= bottom:
            return
        if self._dirty is not None:
            left, top = min(left, self._dirty[0]), min(top, self._dirty[1])
            right, bottom = max(right, self._dirty[2]), max(bottom, self._dirty[3])
        self._dirty = (left, top, right, bottom)

    def show(self, framebuffer: Framebuffer | None) -> bool:
        """Sends what is wanted and has changed; False if the client has gone. Raises GuestError."""
        if not self._rfb.is_ready or self._wanted is None or self._rfb.outgoing:
            return self.flush()
        geometry = framebuffer.geometry if framebuffer is not None else None
        if geometry is not None and (geometry.width, geometry.height) != (self._rfb.width, self._rfb.height):
            if not self._rfb.can_resize:
                return False  # it cannot be told: it may come back
            self._rfb.outgoing += self._rfb.resized(geometry.width, geometry.height)
            self._dirty, self._wanted = (0, 0, geometry.width, geometry.height), None
        elif self._dirty is not None:
            self._send(framebuffer, self._dirty)
            self._dirty = self._wanted = None
        elif self._rfb.owes_key_news:
            self._rfb.outgoing += self._rfb.update([])
            self._wanted = None
        return self.flush()

    def flush(self) -> bool:
        """Sends what waits; False if the client has gone."""
        try:
            while self._rfb.outgoing:
                del self._rfb.outgoing[: self.sock.send(self._rfb.outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def _send(self, framebuffer: Framebuffer | None, part: tuple[int, int, int, int]) -> None:
        left, top, right, bottom = part
        if framebuffer is None:
            geometry = Geometry(self._rfb.width, self._rfb.height, 4 * self._rfb.width, 32)
            lines = bytes(geometry.stride * (bottom - top))
        else:
            geometry = framebuffer.geometry
            lines = framebuffer.lines(top, bottom - top)
        pixels = convert(lines, geometry, left, right - left, self._rfb.format)
        self._rfb.outgoing += self._rfb.update([(left, top, right - left, bottom - top, pixels)])
