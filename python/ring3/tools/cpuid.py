"""`cpuid` of xl.cfg(5): what a domain's CPUs show otherwise than by default.

Two forms: a string `host,KEY=VALUE,...`, or a list of strings `LEAF[,SUBLEAF]:REGISTER=BITS,...`. Either comes to the
same: for each bit of a register, 1 and 0 force it, x asks for the default, k and s for the host's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ring3.errors import ConfigError
from ring3.libs.cpu_policy import NO_SUBLEAF
from ring3.tools.cpuid_names import FEATURES, FIELDS, Place

if TYPE_CHECKING:
    from ring3.libs.connection import Connection
    from ring3.libs.cpu_policy import Leaves

_REGISTERS: Final = ("eax", "ebx", "ecx", "edx")
_WISHES: Final = "10xks"
_NR_BITS: Final = 32


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of the bits of a register: for each a character of "10xk", or "." for no matter; bit 31 first."""

    leaf: int
    subleaf: int
    register: int
    bits: str


def parse_string(text: str) -> list[Wish]:
    """Parses the string form. Raises ValueError."""
    first, *items = text.split(",")
    if first.strip() != "host":
        raise ValueError(f'{text!r} does not start with "host"')
    wishes: list[Wish] = []
    for item in items:
        key, mark, value = (part.strip() for part in item.partition("="))
        if not mark:
            raise ValueError(f'{item!r} has no "="')
        wishes += _wishes(key, value)
    return wishes


def _wishes(key: str, value: str) -> list[Wish]:
    """Returns what KEY=VALUE means: family and model are numbers in two parts."""
    places = FIELDS.get(key) or ([FEATURES[key]] if key in FEATURES else None)
    if places is None:
        raise ValueError(f"{key!r} is not a name of a CPUID flag")
    if value in ("x", "k", "s"):
        return [_wish(place, value * place.length) for place in places]
    try:
        number = int(value, 0)
    except ValueError:
        number = -1
    parts = {"family": [min(number, 15), max(number - 15, 0)], "model": [number & 15, number >> 4]}.get(key, [number])
    fits = all(0 <= part < 1 << place.length for part, place in zip(parts, places, strict=True))
    if number < 0 or not fits:
        raise ValueError(f"{value!r} is no value for {key}")
    return [_wish(place, f"{part:0{place.length}b}") for part, place in zip(parts, places, strict=True)]


def _wish(place: Place, bits: str) -> Wish:
    padded = "." * (_NR_BITS - place.bit - place.length) + bits.replace("s", "k") + "." * place.bit
    return Wish(place.leaf, place.subleaf, _REGISTERS.index(place.register), padded)


def parse_list(items: Iterable[str]) -> list[Wish]:
    """Parses the list form. Raises ValueError."""
    wishes: list[Wish] = []
    for item in items:
        where, mark, rest = item.partition(":")
        if not mark:
            raise ValueError(f'{item!r} has no ":"')
        leaf_text, has_subleaf, subleaf_text = where.partition(",")
        leaf = _number(leaf_text, "leaf")
        subleaf = _number(subleaf_text, "subleaf") if has_subleaf else NO_SUBLEAF
        for assignment in rest.split(","):
            name, mark, bits = (part.strip() for part in assignment.partition("="))
            if not mark or name not in _REGISTERS:
                raise ValueError(f"{assignment.strip()!r} names none of {', '.join(_REGISTERS)}")
            if len(bits) != _NR_BITS or set(bits) - set(_WISHES):
                raise ValueError(f"{bits!r} is not 32 characters of {_WISHES!r}")
            wishes.append(Wish(leaf, subleaf, _REGISTERS.index(name), bits.replace("s", "k")))
    return wishes


def _number(text: str, what: str) -> int:
    try:
        number = int(text.strip(), 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 32:
        raise ValueError(f"{text.strip()!r} is no {what}'s number")
    return number


def parse_option(text: str) -> list[Wish]:
    """Parses `--cpuid`, which may be in either form. Raises ConfigError."""
    try:
        return parse_string(text) if text.split(",", 1)[0].strip() == "host" else parse_list([text])
    except ValueError as error:
        raise ConfigError(str(error), key="cpuid") from error


def changed_leaves(wishes: Iterable[Wish], current: Leaves, default: Leaves, host: Leaves) -> Leaves:
    """Returns the leaves that differ from the current policy. Raises ConfigError for bits of a missing leaf."""
    changed: Leaves = {}
    for wish in wishes:
        key = (wish.leaf, wish.subleaf)
        if not all(key in policy for policy in (current, default, host)):
            if set(wish.bits) <= set("0x."):  # it is not shown anyway
                continue
            place = f"leaf {wish.leaf:#x}" + ("" if wish.subleaf == NO_SUBLEAF else f", subleaf {wish.subleaf:#x}")
            raise ConfigError(f"there is no {place} here", key="cpuid")
        values = list(changed.get(key, current[key]))
        register = wish.register
        values[register] = _merge(wish.bits, values[register], default[key][register], host[key][register])
        changed[key] = (values[0], values[1], values[2], values[3])
    return {key: values for key, values in changed.items() if values != current[key]}


def _merge(bits: str, current: int, default: int, host: int) -> int:
    sources: Mapping[str, int] = {"1": (1 << _NR_BITS) - 1, "0": 0, "x": default, "k": host, ".": current}
    return sum(sources[bit] & 1 << (_NR_BITS - 1 - place) for place, bit in enumerate(bits))


def apply(conn: Connection, domid: int, wishes: Iterable[Wish]) -> None:
    """Gives a new domain the CPUs that are wished for. Raises ConfigError, HypercallError."""
    from ring3.abi.sysctl import XEN_SYSCTL_cpu_policy_host, XEN_SYSCTL_cpu_policy_pv_default
    from ring3.libs import cpu_policy

    leaves = changed_leaves(
        wishes,
        cpu_policy.of_domain(conn, domid),
        cpu_policy.of_machine(conn, XEN_SYSCTL_cpu_policy_pv_default),
        cpu_policy.of_machine(conn, XEN_SYSCTL_cpu_policy_host),
    )
    if leaves:
        cpu_policy.set_of_domain(conn, domid, leaves)
