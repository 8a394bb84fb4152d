"""What VNC clients send, X11 keysyms or scancodes, to the keys that guests get (linux/input-event-codes.h).

Signs are the keymap's (`keymaps`). Source: X11/keysymdef.h; RFB's QEMU Extended Key Event.
"""

from __future__ import annotations

from typing import Final

KEY_LEFTSHIFT: Final = 42
KEY_RIGHTALT: Final = 100
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
_EXTENDED: Final = {
    **dict(enumerate((96, 97), 0x1C)),  # KP_Enter, right Control
    0x20: 113,
    0x2E: 114,
    0x30: 115,  # Mute, Volume
    0x35: 98,
    0x37: 99,
    0x38: 100,
    0x46: 119,  # KP_Divide, Sys_Req, AltGr, Pause
    **dict(enumerate((102, 103, 104), 0x47)),  # Home, Up, Page_Up
    0x4B: 105,
    0x4D: 106,
    **dict(enumerate((107, 108, 109, 110, 111), 0x4F)),  # End, Down, Page_Down, Insert, Delete
    **dict(enumerate((125, 126, 127), 0x5B)),  # left and right Super, Menu
}
"""Keys whose scancode begins with 0xe0."""
_LAST_PLAIN: Final = 0x58
"""Up to F12, Linux numbers keys as PC keyboards do."""


def named_key(keysym: int) -> int | None:
    """Returns the key of a keysym that is no sign: the same on all keyboards."""
    return _NAMED.get(keysym)


def key_of_scancode(code: int) -> int | None:
    """Returns the key of a scancode of the PC/XT set; one that begins with 0xe0 is the second byte with 0x80."""
    if code & 0x80:
        return _EXTENDED.get(code & 0x7F)
    return code if 0 < code <= _LAST_PLAIN else None
