"""The messages of 9P2000.L as a table, and their bytes. No I/O.

A message is size[4] type[1] tag[2] and the fields of its type, little-endian; strings are a length[2] and bytes. A
field list says what follows: a letter for each field, as in `_FIXED`, and `s` a string, `d` counted data, `w` counted
strings, `q` counted qids, `j` one qid.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

HEADER: Final = struct.Struct("<IBH")
VERSION: Final = b"9P2000.L"
NO_TAG: Final = 0xFFFF
NO_FID: Final = 0xFFFFFFFF
IO_HEADER_BYTES: Final = 24
"""What a read or write needs beside its data (P9_IOHDRSZ)."""
WALK_NAMES_MAX: Final = 16
"""P9_MAXWELEM."""
_STRING_BYTES_MAX: Final = 0xFFFF
_QID: Final = struct.Struct("<BIQ")


class Qid(NamedTuple):
    """What a file is to the client: kind, a version that changes with the content, and a number of its own."""

    kind: int
    version: int
    path: int


QID_DIR: Final = 0x80
QID_SYMLINK: Final = 0x02
QID_FILE: Final = 0x00

Field: TypeAlias = "int | bytes | Qid | list[bytes] | list[Qid]"


class Type(IntEnum):
    """Request types; the response's is one more."""

    LERROR = 6
    STATFS = 8
    LOPEN = 12
    LCREATE = 14
    SYMLINK = 16
    MKNOD = 18
    RENAME = 20
    READLINK = 22
    GETATTR = 24
    SETATTR = 26
    XATTRWALK = 30
    XATTRCREATE = 32
    READDIR = 40
    FSYNC = 50
    LOCK = 52
    GETLOCK = 54
    LINK = 70
    MKDIR = 72
    RENAMEAT = 74
    UNLINKAT = 76
    VERSION = 100
    AUTH = 102
    ATTACH = 104
    FLUSH = 108
    WALK = 110
    READ = 116
    WRITE = 118
    CLUNK = 120
    REMOVE = 122


_FIXED: Final = {"B": struct.Struct("<B"), "I": struct.Struct("<I"), "Q": struct.Struct("<Q"), "H": struct.Struct("<H")}
LAYOUTS: Final[dict[Type, tuple[str, str]]] = {
    Type.LERROR: ("", "I"),
    Type.STATFS: ("I", "IIQQQQQQI"),
    Type.LOPEN: ("II", "jI"),
    Type.LCREATE: ("IsIII", "jI"),
    Type.SYMLINK: ("IssI", "j"),
    Type.MKNOD: ("IsIIII", "j"),
    Type.RENAME: ("IIs", ""),
    Type.READLINK: ("I", "s"),
    Type.GETATTR: ("IQ", "QjIIIQQQQQQQQQQQQQQQ"),
    Type.SETATTR: ("IIIIIQQQQQ", ""),
    Type.XATTRWALK: ("IIs", "Q"),
    Type.XATTRCREATE: ("IsQI", ""),
    Type.READDIR: ("IQI", "d"),
    Type.FSYNC: ("II", ""),
    Type.LOCK: ("IBIQQIs", "B"),
    Type.GETLOCK: ("IBQQIs", "BQQIs"),
    Type.LINK: ("IIs", ""),
    Type.MKDIR: ("IsII", "j"),
    Type.RENAMEAT: ("IsIs", ""),
    Type.UNLINKAT: ("IsI", ""),
    Type.VERSION: ("Is", "Is"),
    Type.AUTH: ("IssI", "j"),
    Type.ATTACH: ("IIssI", "j"),
    Type.FLUSH: ("H", ""),
    Type.WALK: ("IIw", "q"),
    Type.READ: ("IQI", "d"),
    Type.WRITE: ("IQd", "I"),
    Type.CLUNK: ("I", ""),
    Type.REMOVE: ("I", ""),
}
"""Fields of request and response."""


class MalformedError(Exception):
    """A message that no client sends."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request, its fields in the order of the table."""

    kind: Type
    tag: int
    fields: tuple[Field, ...]


def parse(message: bytes) -> Request:
    """Returns the request of a whole message. Raises MalformedError."""
    size, kind, tag = HEADER.unpack_from(message)
    if size != len(message):
        raise MalformedError(f"{len(message)} bytes that call themselves {size}")
    try:
        known = Type(kind)
    except ValueError:
        raise MalformedError(f"no request has the type {kind}") from None
    return Request(known, tag, _fields(message, LAYOUTS[known][0]))


def parse_response(message: bytes) -> Request:
    """Returns a response, under its request's type (LERROR for an error). Raises MalformedError."""
    _size, kind, tag = HEADER.unpack_from(message)
    known = Type(kind - 1)
    return Request(known, tag, _fields(message, LAYOUTS[known][1]))


def response(kind: Type, tag: int, *fields: Field) -> bytes:
    """Returns the bytes of a response."""
    return _message(kind + 1, tag, LAYOUTS[kind][1], fields)


def request(kind: Type, tag: int, *fields: Field) -> bytes:
    """Returns the bytes of a request."""
    return _message(kind, tag, LAYOUTS[kind][0], fields)


def error(tag: int, errno: int) -> bytes:
    """Returns the response that says no."""
    return response(Type.LERROR, tag, errno)


def dir_entry(qid: Qid, offset: int, kind: int, name: bytes) -> bytes:
    """Returns one entry of a READDIR response's data."""
    return b"".join((_QID.pack(*qid), struct.pack("<QBH", offset, kind, len(name)), name))


def _fields(message: bytes, layout: str) -> tuple[Field, ...]:
    at = HEADER.size
    fields: list[Field] = []

    def take(nr_bytes: int) -> bytes:
        nonlocal at
        if nr_bytes > len(message) - at:
            raise MalformedError(f"{nr_bytes} bytes wanted at {at} of {len(message)}")
        at += nr_bytes
        return message[at - nr_bytes : at]

    def number(letter: str) -> int:
        fixed = _FIXED[letter]
        return int(fixed.unpack(take(fixed.size))[0])

    for letter in layout:
        match letter:
            case "s":
                fields.append(take(number("H")))
            case "d":
                fields.append(take(number("I")))
            case "w":
                nr_names = number("H")
                if nr_names > WALK_NAMES_MAX:
                    raise MalformedError(f"a walk of {nr_names} names")
                fields.append([take(number("H")) for _ in range(nr_names)])
            case "q":
                fields.append([Qid(*_QID.unpack(take(_QID.size))) for _ in range(number("H"))])
            case "j":
                fields.append(Qid(*_QID.unpack(take(_QID.size))))
            case _:
                fields.append(number(letter))
    if at != len(message):
        raise MalformedError(f"{len(message) - at} bytes too many")
    return tuple(fields)


def _message(kind: int, tag: int, layout: str, fields: tuple[Field, ...]) -> bytes:
    parts = [_packed(letter, field) for letter, field in zip(layout, fields, strict=True)]
    body = b"".join(parts)
    return HEADER.pack(HEADER.size + len(body), kind, tag) + body


def _packed(letter: str, field: Field) -> bytes:
    if isinstance(field, Qid):
        return _QID.pack(*field)
    if isinstance(field, bytes):
        return (_FIXED["I" if letter == "d" else "H"]).pack(len(field)) + field
    if isinstance(field, list):
        items = [_packed("s" if letter == "w" else "j", item) for item in field]
        return _FIXED["H"].pack(len(items)) + b"".join(items)
    return _FIXED[letter].pack(field)
