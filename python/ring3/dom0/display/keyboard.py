"""The back end of a keyboard and pointer: events of 40 bytes in a page that the front end grants."""

from __future__ import annotations

from collections import deque
from typing import Final

from ring3.abi import fbif
from ring3.dom0.display.keysyms import KEY_LEFTSHIFT, SHIFTS, key_of
from ring3.errors import RingError
from ring3.libs.gnttab import GrantMapping

_BUTTONS: Final = ((1, 0x110), (2, 0x112), (4, 0x111))
"""Bits of RFB's mask to BTN_LEFT, BTN_MIDDLE, BTN_RIGHT."""
_WHEEL_UP, _WHEEL_DOWN = 8, 16
_NR_QUEUED_MAX: Final = 1024
"""Events for a front end that takes none; the oldest go."""


class Keyboard:
    """What is typed, on its way. Before connect(), and after disconnect(), it is dropped."""

    def __init__(self) -> None:
        self._page: GrantMapping | None = None
        self._queue: deque[bytes] = deque(maxlen=_NR_QUEUED_MAX)
        self._is_absolute = False
        self._buttons = 0
        self._place = (0, 0)
        self._nr_shifts = 0
        self._down: dict[int, int] = {}

    def connect(self, page: GrantMapping, *, is_absolute: bool) -> None:
        """Takes the front end's page over."""
        self.disconnect()
        self._page, self._is_absolute = page, is_absolute

    def disconnect(self) -> None:
        """Gives the page back."""
        self._queue.clear()
        self._down.clear()
        self._nr_shifts = 0
        if self._page is not None:
            self._page.close()
            self._page = None

    def type(self, keysym: int, *, is_pressed: bool) -> None:
        """Presses or releases a key, with shift where the client has pressed none but the sign needs it."""
        if not is_pressed:
            code = self._down.pop(keysym, None)
            if code is not None:
                self._nr_shifts -= keysym in SHIFTS
                self._queue.append(fbif.key(code, is_pressed=False))
            return
        found = key_of(keysym)
        if found is None:
            return
        code, needs_shift = found
        if keysym not in self._down:
            self._nr_shifts += keysym in SHIFTS
        self._down[keysym] = code
        is_shift_missing = needs_shift is True and self._nr_shifts == 0
        if is_shift_missing:
            self._queue.append(fbif.key(KEY_LEFTSHIFT, is_pressed=True))
        self._queue.append(fbif.key(code, is_pressed=True))
        if is_shift_missing:
            self._queue.append(fbif.key(KEY_LEFTSHIFT, is_pressed=False))

    def release_all(self) -> None:
        """Releases what is pressed: whoever pressed it has gone."""
        for keysym in list(self._down):
            self.type(keysym, is_pressed=False)

    def point(self, x: int, y: int, buttons: int) -> None:
        """Moves the pointer, and presses or releases its buttons."""
        pressed = buttons & ~self._buttons
        wheel = (pressed & _WHEEL_DOWN > 0) - (pressed & _WHEEL_UP > 0)
        if self._is_absolute:
            self._queue.append(fbif.position(x, y, wheel))
        else:
            self._queue.append(fbif.motion(x - self._place[0], y - self._place[1], wheel))
        for bit, code in _BUTTONS:
            if (buttons ^ self._buttons) & bit:
                self._queue.append(fbif.key(code, is_pressed=bool(buttons & bit)))
        self._place, self._buttons = (x, y), buttons

    def flush(self, domid: int) -> bool:
        """Puts into the page what fits; returns whether the front end must be told. Raises RingError."""
        if self._page is None:
            self._queue.clear()
            return False
        view = self._page.view
        indices = view[: fbif.OUT_CONS_OFFSET].cast("I")
        try:
            cons, prod = indices[0], indices[1]
            nr_used = prod - cons & 0xFFFFFFFF
            if nr_used > fbif.KBD_IN_LENGTH:
                raise RingError(domid, f"vkbd: in_cons {cons:#x} is {nr_used} events behind")
            nr = min(fbif.KBD_IN_LENGTH - nr_used, len(self._queue))
            for _ in range(nr):
                at = fbif.IN_OFFSET + prod % fbif.KBD_IN_LENGTH * fbif.EVENT_BYTES
                view[at : at + fbif.EVENT_BYTES] = self._queue.popleft()
                prod = prod + 1 & 0xFFFFFFFF
            indices[1] = prod
        finally:
            indices.release()
        return nr > 0
