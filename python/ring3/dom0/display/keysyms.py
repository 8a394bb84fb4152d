"""X11 keysyms, which VNC clients send, to keys of a US keyboard (linux/input-event-codes.h), which guests get.

Source: X11/keysymdef.h.
"""

from __future__ import annotations

from typing import Final

KEY_LEFTSHIFT: Final = 42
SHIFTS: Final = (0xFFE1, 0xFFE2)
_ROWS: Final = (
    (2, "1234567890-=", "!@#$%^&*()_+"),
    (16, "qwertyuiop[]", "QWERTYUIOP{}"),
    (30, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (43, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
)
"""First key, and what the keys from there on say without and with shift."""
_RUNS: Final = (
    (0x20, (57,)),
    (0xFF08, (14, 15)),  # BackSpace, Tab
    (0xFF0D, (28,)),  # Return
    (0xFF13, (119, 70, 99)),  # Pause, Scroll_Lock, Sys_Req
    (0xFF1B, (1,)),  # Escape
    (0xFF50, (102, 105, 103, 106, 108, 104, 109, 107)),  # Home, Left, Up, Right, Down, Page_Up, Page_Down, End
    (0xFF61, (99,)),  # Print
    (0xFF63, (110,)),  # Insert
    (0xFF67, (127,)),  # Menu
    (0xFF7F, (69,)),  # Num_Lock
    (0xFF8D, (96,)),  # KP_Enter
    (0xFF95, (71, 75, 72, 77, 80, 73, 81, 79, 76, 82, 83)),  # KP_Home, and what else the number pad says
    (0xFFAA, (55, 78)),  # KP_Multiply, KP_Add
    (0xFFAD, (74, 83, 98, 82, 79, 80, 81, 75, 76, 77, 71, 72, 73)),  # KP_Subtract, Decimal, Divide, 0 to 9
    (0xFFBE, (59, 60, 61, 62, 63, 64, 65, 66, 67, 68, 87, 88)),  # F1 to F12
    (0xFFE1, (42, 54, 29, 97, 58)),  # Shift, Control, Caps_Lock
    (0xFFE7, (56, 100, 56, 100, 125, 126)),  # Meta, Alt, Super, left and right
    (0xFE03, (100,)),  # ISO_Level3_Shift
    (0xFE20, (15,)),  # ISO_Left_Tab
    (0xFFFF, (111,)),  # Delete
)
"""First keysym, and the keys of that and those that follow it."""
_NAMED: Final = {first + place: key for first, keys in _RUNS for place, key in enumerate(keys)}


def _printable() -> dict[int, tuple[int, bool]]:
    keys = {}
    for first, plain, shifted in _ROWS:
        for place, (low, high) in enumerate(zip(plain, shifted, strict=True)):
            keys[ord(low)], keys[ord(high)] = (first + place, False), (first + place, True)
    return keys


_PRINTABLE: Final = _printable()


def key_of(keysym: int) -> tuple[int, bool | None] | None:
    """Returns the key, and whether shift must be down for it (None: no matter); None for what no key says."""
    if keysym in _NAMED:
        return _NAMED[keysym], None
    return _PRINTABLE.get(keysym)
