"""The words that describe a disk: xl-disk-configuration(5), with the prefixes that it calls deprecated.

Source: docs/man/xl-disk-configuration.5.pod of Xen; what its parser does with odd cases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

from ring3.errors import ConfigError

FORMATS: Final = ("raw", "qcow", "qcow2", "vhd", "qed", "vhdx", "vmdk", "vdi", "empty")
"""xl's, and others that QEMU reads."""
_BACKEND_TYPES: Final = ("phy", "tap", "qdisk", "standalone")
_ACCESS: Final = {"r": True, "ro": True, "w": False, "rw": False}
"""Word to whether it means read-only."""
_FORMAT_PREFIXES: Final = ("raw", "qcow", "qcow2", "vhd", "qed")
_IDLE_PREFIXES: Final = ("phy", "file", "tap", "tap2", "aio", "tapdisk", "ioemu")
_SCRIPT_PREFIXES: Final = ("iscsi", "nbd", "enbd", "drbd")
_KEYS: Final = ("target", "format", "vdev", "access", "devtype", "backendtype", "backend", "script")
_FLAGS: Final = ("cdrom", "discard", "no-discard", "direct-io-safe")
_VDEV: Final = re.compile(r"(xvd|hd|sd)([a-z]{1,3})(\d{0,3})|d(\d{1,5})(?:p(\d{1,3}))?|(0x[0-9a-fA-F]{1,8}|\d{1,9})")
_EXTENDED: Final = 1 << 28
_PARTITIONS_MAX: Final = 255


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """A disk as somebody wants it. Nothing has been looked at yet."""

    vdev: str
    target: str = ""
    format: str = "raw"
    is_read_only: bool = False
    is_cdrom: bool = False
    has_discard: bool = True
    is_direct_io_safe: bool = False
    backend_type: str | None = None
    script: str | None = None

    @property
    def devid(self) -> int:
        """The number of the virtual device."""
        return vdev_number(self.vdev)

    @classmethod
    def parse(cls, text: str) -> DiskSpec:
        """Returns what a specification says. Raises ConfigError."""
        return _Parser(text).spec()


class _Parser:
    """One specification, from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._values: dict[str, str] = {}
        self._flags: set[str] = set()
        self._had_prefix = False

    def spec(self) -> DiskSpec:
        self._read()
        values = self._values
        vdev, colon, kind = values.get("vdev", "").partition(":")  # hdc:cdrom, deprecated
        if colon:
            self._put("devtype", kind)
        if values.get("devtype") not in (None, "cdrom", "disk"):
            raise self._error(f"devtype is disk or cdrom, not {values['devtype']!r}")
        if not vdev:
            raise self._error("vdev is missing (such as xvda)")
        vdev_number(vdev)
        if values.get("backend", "0") not in ("0", "Domain-0"):
            raise self._error("backend: domain 0 serves all disks")
        if values.get("backendtype") not in (None, *_BACKEND_TYPES):
            raise self._error(f"backendtype is one of {', '.join(_BACKEND_TYPES)}, not {values['backendtype']!r}")
        format_ = values.get("format") or "raw"
        if format_ not in FORMATS:
            raise self._error(f"format is one of {', '.join(FORMATS)}, not {format_!r}")
        access = values.get("access") or ""
        if access and access not in _ACCESS:
            raise self._error(f"access is r, ro, w or rw, not {access!r}")
        is_cdrom = "cdrom" in self._flags or values.get("devtype") == "cdrom"
        target = values.get("target", "")
        if is_cdrom and not target:
            format_ = "empty"
        elif format_ == "empty" or not target:
            raise self._error("target is missing: only a cdrom may be empty")
        return DiskSpec(
            vdev=vdev,
            target=target,
            format=format_,
            is_read_only=is_cdrom or _ACCESS.get(access, False),
            is_cdrom=is_cdrom,
            has_discard="no-discard" not in self._flags,
            is_direct_io_safe="direct-io-safe" in self._flags,
            backend_type=values.get("backendtype"),
            script=values.get("script"),
        )

    def _read(self) -> None:
        rest = self._text.strip()
        positions: Iterator[str] = iter(("target", "format", "vdev", "access"))
        is_first = True
        while rest or is_first:
            is_first = False
            if rest.startswith("target="):  # takes all that follows
                self._put("target", rest.removeprefix("target="))
                return
            word, comma, rest = rest.partition(",")
            word, rest = word.strip(), rest.lstrip()
            key, equals, value = word.partition("=")
            if word in _FLAGS:
                self._put_flag(word)
            elif equals and re.fullmatch(r"[a-z][-a-z0-9]*", key):
                if key not in _KEYS:
                    raise self._error(f"{key} is no parameter of a disk")
                self._put(key, value)
            else:
                position = next((name for name in positions if name not in self._values), None)
                if position is None:
                    if word:
                        raise self._error(f"{word!r} is one word too many")
                elif position == "target":
                    self._put_target(word)
                elif word:
                    if position == "format" and self._had_prefix and word not in FORMATS:
                        position = next(positions)  # phy:/dev/sdb,xvdb,r
                    self._put("format" if self._had_prefix and word in FORMATS else position, word)
                elif position != "format" and self._had_prefix:
                    positions = chain([position], positions)  # raw:/dev/sdb,,xvdb,r
            if not comma:
                return

    def _put_target(self, word: str) -> None:
        """Takes the prefixes off; several may stand in a row."""
        while (found := re.match(r"([a-z][a-z0-9]*):", word)) is not None:
            prefix = found[1]
            self._had_prefix = True
            if prefix in _SCRIPT_PREFIXES:
                self._put("script", f"block-{prefix}")
            elif prefix in _FORMAT_PREFIXES:
                self._put("format", prefix)
            elif prefix not in _IDLE_PREFIXES:
                raise self._error(f"{prefix}: is no prefix of a disk")
            word = word[found.end() :]
        self._put("target", word)

    def _put(self, key: str, value: str) -> None:
        if key in self._values:
            raise self._error(f"{key} is given twice")
        self._values[key] = value

    def _put_flag(self, flag: str) -> None:
        if {"discard", "no-discard"} <= self._flags | {flag}:
            raise self._error("both discard and no-discard")
        self._flags.add(flag)

    def _error(self, message: str) -> ConfigError:
        return ConfigError(f"{self._text!r}: {message}", key="disk")


def vdev_number(name: str) -> int:
    """Returns the number of a virtual device. Raises ConfigError. Source: xen-vbd-interface(7)."""
    found = _VDEV.fullmatch(name)
    if found is None:
        raise ConfigError(f"{name!r} is no virtual device (xvda, xvda1, hda, sda, d0p1 or a number are)", key="vdev")
    family, letters, part_text, disk_text, disk_part, number = found.groups()
    if number is not None:
        return int(number, 0)
    if family is None:
        family, disk, partition = "xvd", int(disk_text), int(disk_part or 0)
    else:
        disk = 0
        for letter in letters:
            disk = disk * 26 + ord(letter) - ord("a") + 1
        disk, partition = disk - 1, int(part_text or 0)
    if family == "hd" and disk < 4 and partition < 64:
        return (3 if disk < 2 else 22) << 8 | (disk & 1) << 6 | partition
    if family == "sd" and disk < 16 and partition < 16:
        return 8 << 8 | disk << 4 | partition
    if family == "xvd" and disk < 16 and partition < 16:
        return 202 << 8 | disk << 4 | partition
    if family == "xvd" and disk < 1 << 20 and partition <= _PARTITIONS_MAX:
        return _EXTENDED | disk << 8 | partition
    raise ConfigError(f"{name!r}: there are not so many disks or partitions of that kind", key="vdev")
