"""Values as people write and read them: unprintable bytes are escaped as in C."""

from __future__ import annotations

import re
from typing import Final

_NAMED: Final = {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r", 0x5C: "\\\\"}
_MEANING: Final = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}
_OCTAL_END: Final = 8
"""Bytes below this are written in octal, other unprintable ones in hexadecimal."""
_ESCAPE: Final = re.compile(rb"\\(?:x([0-9A-Fa-f]{1,2})|([0-7]{1,3})|(.)|$)", re.DOTALL)


def escape(value: bytes) -> str:
    """Returns a value as text without unprintable characters."""
    return "".join(_escape_byte(byte) for byte in value)


def _escape_byte(byte: int) -> str:
    if byte in _NAMED:
        return _NAMED[byte]
    if 0x20 <= byte < 0x7F:
        return chr(byte)
    return f"\\{byte:03o}" if byte < _OCTAL_END else f"\\x{byte:02x}"


def unescape(text: bytes) -> bytes:
    """Returns the value that a text means. A backslash before anything else means just that; one at the end, NUL."""
    return _ESCAPE.sub(_unescape_match, text)


def _unescape_match(match: re.Match[bytes]) -> bytes:
    hexadecimal, octal, other = match.groups()
    if hexadecimal is not None:
        return bytes([int(hexadecimal, 16)])
    if octal is not None:
        return bytes([int(octal, 8) & 0xFF])
    if other is not None:
        return _MEANING.get(other, other)
    return b"\0"
