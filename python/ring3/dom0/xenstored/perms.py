"""Node permissions: who may read and write a node. Plain values, no I/O.

The first entry names the owner, and what everybody has who is not listed. Domain 0 and the owner may do anything.
"""

from dataclasses import dataclass
from typing import Final

from ring3.abi.xen import DOMID_FIRST_RESERVED
from ring3.dom0.xenstored.wire import RefusedError

_LETTERS: Final = {(False, False): b"n", (True, False): b"r", (False, True): b"w", (True, True): b"b"}
_MEANING: Final = {letter[0]: meaning for meaning, letter in _LETTERS.items()}
NR_PERMS_MAX: Final = 64
"""More entries than this on one node are refused with ENOSPC, whoever asks; the quota of guests is lower."""


@dataclass(frozen=True, slots=True)
class Perm:
    """One entry of a node's permission list."""

    domid: int
    can_read: bool
    can_write: bool

    @property
    def letter(self) -> bytes:
        """What the domain may: b"r", b"w", b"b" (both) or b"n" (nothing)."""
        return _LETTERS[self.can_read, self.can_write]

    def encode(self) -> bytes:
        """Returns the text form, such as b"r7"."""
        return self.letter + str(self.domid).encode()


Perms = tuple[Perm, ...]
PRIVATE_PERMS: Final[Perms] = (Perm(0, False, False),)


def parse_domid(untrusted_text: bytes) -> int:
    """Returns a domid from decimal text. Raises RefusedError(EINVAL)."""
    if not untrusted_text.isdigit() or len(untrusted_text) > 5:
        raise RefusedError("EINVAL")
    domid = int(untrusted_text)
    if domid >= DOMID_FIRST_RESERVED:
        raise RefusedError("EINVAL")
    return domid


def parse_perms(untrusted_strings: list[bytes]) -> Perms:
    """Returns the list that a SET_PERMS request carries. Raises RefusedError(EINVAL, ENOSPC)."""
    if not untrusted_strings:
        raise RefusedError("EINVAL")
    if len(untrusted_strings) > NR_PERMS_MAX:
        raise RefusedError("ENOSPC")
    perms = []
    for text in untrusted_strings:
        if not text or text[0] not in _MEANING:
            raise RefusedError("EINVAL")
        can_read, can_write = _MEANING[text[0]]
        perms.append(Perm(parse_domid(text[1:]), can_read, can_write))
    return tuple(perms)


def access(perms: Perms, domid: int) -> tuple[bool, bool]:
    """Returns (may read, may write) of an unprivileged domain."""
    owner = perms[0]
    if domid == owner.domid:
        return True, True
    for perm in perms[1:]:
        if perm.domid == domid:
            return perm.can_read, perm.can_write
    return owner.can_read, owner.can_write


def with_owner(perms: Perms, domid: int) -> Perms:
    """Returns inherited permissions with another owner: what a node gets that an unprivileged domain creates."""
    first = perms[0]
    return (Perm(domid, first.can_read, first.can_write), *perms[1:])


def without(perms: Perms, domid: int) -> Perms:
    """Returns permissions in which a domain other than the owner is not named."""
    return (perms[0], *(perm for perm in perms[1:] if perm.domid != domid))
