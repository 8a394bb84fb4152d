"""The words that describe a disk: xl-disk-configuration(5), with the prefixes that it calls deprecated.

Source: docs/man/xl-disk-configuration.5.pod of Xen; what its parser does with odd cases.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ring3.errors import ConfigError

FORMATS: Final = ("raw", "qcow", "qcow2", "vhd", "qed", "vhdx", "vmdk", "vdi", "empty")
"""xl's, and others that QEMU reads."""
_BACKEND_TYPES: Final = ("phy", "tap", "qdisk")
_ACCESS: Final = {"r": True, "ro": True, "w": False, "rw": False}
"""Word to whether it means read-only."""
_FORMAT_PREFIXES: Final = ("raw", "qcow", "qcow2", "vhd", "qed")
_IDLE_PREFIXES: Final = ("phy", "file", "tap", "tap2", "aio", "tapdisk", "ioemu")
_SCRIPT_PREFIXES: Final = ("iscsi", "nbd", "enbd", "drbd")
_KEYS: Final = ("target", "format", "vdev", "access", "devtype", "backendtype", "backend", "script", "specification")
_FLAGS: Final = ("cdrom", "discard", "no-discard", "direct-io-safe", "trusted", "untrusted", "no-colo")
_OPPOSITES: Final = ({"discard", "no-discard"}, {"trusted", "untrusted"})
_COLO: Final = ("colo", "colo-host", "colo-port", "colo-export", "active-disk", "hidden-disk")
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
    is_trusted: bool = True
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
        try:
            vdev_number(vdev)
        except ConfigError as error:
            raise self._error(str(error).removeprefix("vdev: ")) from error
        if values.get("backend", "0") not in ("", "0", "Domain-0"):
            raise self._error("backend: domain 0 serves all disks")
        format_ = values.get("format") or "raw"
        if format_ not in FORMATS:
            raise self._error(f"format is one of {', '.join(FORMATS)}, not {format_!r}")
        self._check_back_end(format_)
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
            is_trusted="untrusted" not in self._flags,
            backend_type=values.get("backendtype"),
            script=values.get("script") or None,
        )

    def _check_back_end(self, format_: str) -> None:
        """Refuses what back ends of this kind do not do: xl-disk-configuration(5) says so, or there is none here."""
        specification = self._values.get("specification") or "xen"
        if specification not in ("xen", "virtio"):
            raise self._error(f"specification is xen or virtio, not {specification!r}")
        backend_type = self._values.get("backendtype")
        if specification == "virtio" or backend_type == "standalone":
            raise self._error("virtio disks are not served")
        if backend_type not in (None, *_BACKEND_TYPES):
            raise self._error(f"backendtype is one of {', '.join(_BACKEND_TYPES)}, not {backend_type!r}")
        if format_ not in ("raw", "empty") and (backend_type == "phy" or self._values.get("script")):
            by = "a script" if self._values.get("script") else "backendtype phy"
            raise self._error(f"{by} goes with format raw alone, not {format_}")

    def _read(self) -> None:
        rest = self._text.strip()
        while rest:
            if rest.startswith("target="):  # takes all that follows
                self._put("target", rest.removeprefix("target="))
                return
            word, _comma, rest = rest.partition(",")
            word, rest = word.strip(), rest.lstrip()
            key, equals, value = word.partition("=")
            if key in _COLO:
                raise self._error(f"{key}: there is no COLO here")
            if word in _FLAGS:
                self._put_flag(word)
            elif equals and re.fullmatch(r"[a-z][-a-z0-9]*", key):
                if key not in _KEYS:
                    raise self._error(f"{key} is no parameter of a disk")
                self._put(key, value)
            else:
                self._put_positional(word)

    def _put_positional(self, word: str) -> None:
        values = self._values
        if "target" not in values:
            self._put_target(word)
        elif "format" not in values and not self._had_prefix:
            if not values["target"] and ":" in word:
                self._put("vdev", word)  # ,hdc:cdrom,r
                self._put("format", "empty")
            else:
                self._put("format", word)
        elif not values.get("vdev"):
            if self._had_prefix and word in FORMATS:  # raw:/dev/sdb,raw,xvdb,r
                self._put("format", word)
            else:
                self._put("vdev", word)  # phy:/dev/sdb,xvdb,r or phy:/dev/sdb,,xvdb,r
        elif "access" not in values:
            self._put("access", word)
        else:
            raise self._error(f"{word!r} is one word too many")

    def _put_target(self, word: str) -> None:
        """Takes the prefixes off; several may stand in a row."""
        while (found := re.match(r"([a-z][a-z0-9]*):", word)) is not None:
            prefix, rest = found[1], word[found.end() :]
            if prefix in _SCRIPT_PREFIXES:
                self._put("script", f"block-{prefix}")
            elif prefix in _FORMAT_PREFIXES:
                self._put("format", prefix)
            elif prefix not in _IDLE_PREFIXES:
                if re.match(r"[a-z0-9]", rest):  # host:10809 is a target that scripts know
                    break
                raise self._error(f"{prefix}: is no prefix of a disk")
            self._had_prefix = True
            word = rest
        self._put("target", word)

    def _put(self, key: str, value: str) -> None:
        if self._values.get(key) and self._values[key] != value:
            raise self._error(f"{key} is given twice")
        self._values[key] = value

    def _put_flag(self, flag: str) -> None:
        self._flags.add(flag)
        for pair in _OPPOSITES:
            if pair <= self._flags:
                raise self._error(f"both {' and '.join(sorted(pair))}")

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
