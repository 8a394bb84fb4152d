"""The back end of a keyboard and pointer: events of 40 bytes in a page that the front end grants."""

from __future__ import annotations

from collections import deque
from typing import Final

from ring3.abi import fbif
from ring3.dom0.display.keymaps import Level, keymap
from ring3.dom0.display.keysyms import KEY_LEFTSHIFT, KEY_RIGHTALT, key_of_scancode, named_key
from ring3.errors import RingError
from ring3.libs.gnttab import GrantMapping

_BUTTONS: Final = ((1, 0x110), (2, 0x112), (4, 0x111))
"""Bits of RFB's mask to BTN_LEFT, BTN_MIDDLE, BTN_RIGHT."""
_MODIFIERS: Final = {Level.SHIFT: ((42, 54), KEY_LEFTSHIFT), Level.ALTGR: ((100,), KEY_RIGHTALT)}
"""What is down for a level, by any of these keys, and what stands in for it."""
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
        self._down: dict[int, int] = {}
        """Keys that are down, by keysym, or by scancode (negative)."""
        self._keymap = keymap("en-us")

    def connect(self, page: GrantMapping, *, is_absolute: bool) -> None:
        """Takes the front end's page over."""
        self.disconnect()
        self._page, self._is_absolute = page, is_absolute

    def disconnect(self) -> None:
        """Gives the page back."""
        self._queue.clear()
        self._down.clear()
        if self._page is not None:
            self._page.close()
            self._page = None

    def set_keymap(self, name: str) -> None:
        """Has signs typed as on another keyboard. Raises KeyError for one that is not known."""
        self._keymap = keymap(name)

    def type(self, keysym: int, *, is_pressed: bool) -> None:
        """Presses or releases a key, with shift or AltGr where the client has pressed none but the sign needs it."""
        if not is_pressed:
            self._release(keysym)
            return
        named = named_key(keysym)
        key, level = (named, Level.PLAIN) if named is not None else self._keymap.get(keysym, (None, Level.PLAIN))
        if key is None:
            return
        self._down[keysym] = key
        holders, missing = _MODIFIERS.get(level, ((), None))
        if missing is None or any(holder in self._down.values() for holder in holders):
            self._queue.append(fbif.key(key, is_pressed=True))
            return
        self._queue.append(fbif.key(missing, is_pressed=True))
        self._queue.append(fbif.key(key, is_pressed=True))
        self._queue.append(fbif.key(missing, is_pressed=False))

    def scan(self, code: int, *, is_pressed: bool) -> None:
        """Presses or releases a key by its place: what it says is the guest's layout."""
        key = key_of_scancode(code)
        if not is_pressed:
            self._release(-code)
        elif key is not None:
            self._down[-code] = key
            self._queue.append(fbif.key(key, is_pressed=True))

    def _release(self, name: int) -> None:
        key = self._down.pop(name, None)
        if key is not None:
            self._queue.append(fbif.key(key, is_pressed=False))

    def release_all(self) -> None:
        """Releases what is pressed: whoever pressed it has gone."""
        for name in list(self._down):
            self._release(name)

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
