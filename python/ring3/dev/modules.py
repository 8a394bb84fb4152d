"""Modules of Debian's kernels, for an initramfs that loads them: see `initramfs.INIT`."""

from __future__ import annotations

import lzma
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from ring3.dev import apt, debian
from ring3.dev import kernel as kernel_packages
from ring3.dev.apt import HOST, Apt
from ring3.dev.initramfs import MODULES, ArtefactError

_VERSION_POINTER = 0x20E
_SETUP_BYTES = 0x200
"""Source: Linux, Documentation/x86/boot.rst: kernel_version, relative to the end of the boot sector."""

_UNPACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".xz": lzma.decompress}
"""How a module is packed, by what follows `.ko`: Debian compresses since 13."""


def release(kernel: Path) -> str:
    """Returns the release of a bzImage, such as 6.1.0-56-cloud-amd64. Raises ArtefactError."""
    with kernel.open("rb") as file:
        head = file.read(64 << 10)
    start = int.from_bytes(head[_VERSION_POINTER : _VERSION_POINTER + 2], "little") + _SETUP_BYTES
    text = head[start:].partition(b"\0")[0].decode(errors="replace").split(" ")[0]
    if not re.fullmatch(r"[0-9][0-9A-Za-z.+-]*", text):
        raise ArtefactError(f"{kernel} does not say which kernel it is")
    return text


def files(directory: Path, kernel: Path, names: Iterable[str], suite: str | None = None) -> dict[str, bytes]:
    """Returns modules of a kernel of Debian's, and those they depend on, as /init wants them.

    Fetched once and kept in `directory`; the suite is as for `kernel.fetch`. Raises ArtefactError.
    """
    source = _Package(directory, release(kernel), HOST if suite is None else apt.suite(directory, suite))
    ordered: dict[str, bytes] = {}
    source.fetch(names)
    for name in names:
        _add(source, name, ordered)
    return {f"{MODULES}/{number:02}-{name}.ko": data for number, (name, data) in enumerate(ordered.items())}


def _add(source: _Package, name: str, ordered: dict[str, bytes]) -> None:
    """Adds what a module needs, then the module."""
    name = name.replace("-", "_")
    if name in ordered:
        return
    data = source.module(name)
    needed = depends(data)
    source.fetch(needed)
    for other in needed:
        _add(source, other, ordered)
    ordered[name] = data


def depends(module: bytes) -> list[str]:
    """Returns the modules that one names as needed."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name for name in found[1].decode().split(",") if name] if found else []


class _Package:
    """The modules of one kernel that have been asked for so far."""

    def __init__(self, directory: Path, release: str, source: Apt) -> None:
        self._apt = source
        self._packages = directory / "packages"
        self._kept = directory / f"modules-{release}"
        self._package = f"linux-image-{release}"

    def module(self, name: str) -> bytes:
        """Returns a module that has been fetched."""
        path = self._kept / f"{name}.ko"
        if not path.is_file():
            raise ArtefactError(f"{self._package} has no module {name}")
        return path.read_bytes()

    def fetch(self, names: Iterable[str]) -> None:
        """Unpacks modules that are not there yet: in one pass, since that takes seconds."""
        wanted = {name.replace("-", "_") for name in names}
        wanted = {name for name in wanted if not (self._kept / f"{name}.ko").is_file()}
        if not wanted:
            return
        if not debian.has_apt():
            raise ArtefactError(f"apt-get is not on this machine, and {self._package} comes from Debian")
        self._packages.mkdir(parents=True, exist_ok=True)
        self._kept.mkdir(exist_ok=True)
        for package in kernel_packages.parts(self._package, self._apt):
            for path, data in debian.members(debian.download(self._packages, package, self._apt)):
                name, _, packing = Path(path).name.partition(".ko")
                name = name.replace("-", "_")
                if name in wanted and packing in _UNPACK and "/modules/" in path:
                    partial = self._kept / f"{name}.{os.getpid()}.part"
                    partial.write_bytes(_UNPACK[packing](data))
                    partial.replace(self._kept / f"{name}.ko")
