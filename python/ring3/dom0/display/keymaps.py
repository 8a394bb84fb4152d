"""Keyboards of countries: which keys say a sign, as the guest's own layout is to understand it (`keymap=` of vfb).

Source: the layouts of X's keyboard data (symbols gb, de, fr, es, it); key numbers from linux/input-event-codes.h.
"""
# ruff: noqa: RUF001 (the accents are meant)

from __future__ import annotations

from enum import Enum, auto
from typing import Final

_KEYS: Final = (41, *range(2, 14), *range(16, 28), *range(30, 41), 43, 86, *range(44, 54))
"""By rows: left of 1, digits, letters, the key above or beside Return, the key beside the left shift."""


class Level(Enum):
    """What must be down for a sign."""

    PLAIN = auto()
    SHIFT = auto()
    ALTGR = auto()


_LAYOUTS: Final = {
    "en-us": (
        "`1234567890-=qwertyuiop[]asdfghjkl;'\\ zxcvbnm,./",
        '~!@#$%^&*()_+QWERTYUIOP{}ASDFGHJKL:"| ZXCVBNM<>?',
        "",
    ),
    "en-gb": (
        "`1234567890-=qwertyuiop[]asdfghjkl;'#\\zxcvbnm,./",
        '¬!"£$%^&*()_+QWERTYUIOP{}ASDFGHJKL:@~|ZXCVBNM<>?',
        "¦   €        ",
    ),
    "de": (
        "^1234567890ß´qwertzuiopü+asdfghjklöä#<yxcvbnm,.-",
        "°!\"§$%&/()=?`QWERTZUIOPÜ*ASDFGHJKLÖÄ'>YXCVBNM;:_",
        "  ²³   {[]}\\ @ €        ~            |      µ   ",
    ),
    "fr": (
        "²&é\"'(-è_çà)=azertyuiop^$qsdfghjklmù*<wxcvbn,;:!",
        " 1234567890°+AZERTYUIOP¨£QSDFGHJKLM%µ>WXCVBN?./§",
        "  ~#{[|`\\^@]}  €        ¤",
    ),
    "es": (
        "º1234567890'¡qwertyuiop`+asdfghjklñ´ç<zxcvbnm,.-",
        'ª!"·$%&/()=?¿QWERTYUIOP^*ASDFGHJKLÑ¨Ç>ZXCVBNM;:_',
        "\\|@#~€¬        €       []          {}",
    ),
    "it": (
        "\\1234567890'ìqwertyuiopè+asdfghjklòàù<zxcvbnm,.-",
        '|!"£$%&/()=?^QWERTYUIOPé*ASDFGHJKLç°§>ZXCVBNM;:_',
        "     €         €       []         @#",
    ),
}
"""Signs by the keys above: plain, with shift, with AltGr; a blank for none."""
NAMES: Final = tuple(_LAYOUTS)
_DEAD: Final = {"`": 0xFE50, "´": 0xFE51, "^": 0xFE52, "~": 0xFE53, "¨": 0xFE57}
"""Keysyms of keys that wait for a letter, which clients send in place of the sign."""


def keymap(name: str) -> dict[int, tuple[int, Level]]:
    """Returns the keys by keysym; of a sign that is there twice, the one with the fewest keys. Raises KeyError.

    The keysym of a sign of Latin-1 is its number, and so is the euro's. Source: X11/keysymdef.h.
    """
    found: dict[int, tuple[int, Level]] = {}
    for level, signs in zip(Level, _LAYOUTS[name], strict=True):
        for key, sign in zip(_KEYS, signs, strict=False):
            if sign != " ":
                found.setdefault(ord(sign), (key, level))
                if sign in _DEAD:
                    found.setdefault(_DEAD[sign], (key, level))
    return found
