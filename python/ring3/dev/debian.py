"""Debian's packages as a source of guest files: downloaded by apt-get, unpacked here, never installed."""

import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ring3.dev import needed
from ring3.dev.apt import HOST, Apt
from ring3.dev.initramfs import ArtefactError

_LIBRARIES = "lib/x86_64-linux-gnu"
_LOADER = "lib64/ld-linux-x86-64.so.2"
_ARCHITECTURE = "amd64"


def has_apt() -> bool:
    """Whether packages can be had on this machine."""
    return shutil.which("apt-get") is not None and shutil.which("dpkg-deb") is not None


def depends(package: str, apt: Apt = HOST) -> list[str]:
    """Returns the packages that one depends on. Raises ArtefactError if apt does not know it."""
    done = apt("apt-cache", "depends", "--important", package)
    if done.returncode != 0 or not done.stdout.startswith(package):
        raise ArtefactError(f"apt-cache knows no {package}; as root: apt-get update")
    return re.findall(r"^ +\|?(?:Pre)?Depends: ([a-z0-9]\S*)$", done.stdout, re.MULTILINE)


def download(directory: Path, package: str, apt: Apt = HOST) -> Path:
    """Returns the package's file, fetched into `directory` unless it is there. Raises ArtefactError."""
    found = sorted(directory.glob(f"{package}_*_{_ARCHITECTURE}.deb"))
    if found:
        return found[-1]
    downloads = directory / f"download-{package}-{os.getpid()}"
    downloads.mkdir(parents=True, exist_ok=True)
    try:
        command = ("apt-get", "-qq", "download", f"{package}:{_ARCHITECTURE}")
        if apt(*command, cwd=downloads).returncode != 0:
            apt.refresh()
            apt(*command, cwd=downloads)
        packages = list(downloads.glob("*.deb"))
        if len(packages) != 1:
            raise ArtefactError(f"no {package} from apt-get")
        return packages[0].replace(directory / packages[0].name)
    finally:
        shutil.rmtree(downloads)


def members(package: Path) -> Iterator[tuple[str, bytes]]:
    """Yields path (without a leading slash) and content of every file of a package; links to other files of it too."""
    content = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            try:
                source = archive.extractfile(member)
            except KeyError:  # a link that leads out of the package
                continue
            if source is not None:  # no directory
                yield member.name.removeprefix("./"), source.read()


@dataclass
class _Collection:
    """Files of packages that were looked at, by base name: what a loader searches for."""

    directory: Path
    libraries: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def add(self, package: str) -> None:
        """Reads a package's shared libraries, once."""
        if package in self.seen:
            return
        self.seen.add(package)
        for path, data in members(download(self.directory, package)):
            if ".so" in Path(path).name and needed.is_elf(data):
                self.libraries.setdefault(Path(path).name, (package, data))

    def library(self, name: str, dependent: str) -> tuple[str, bytes]:
        """Returns the package and content of a library that a file of package `dependent` needs."""
        if name not in self.libraries:
            for package in [dependent, *depends(dependent)]:
                self.add(package)
        if name not in self.libraries:
            raise ArtefactError(f"{name}, which {dependent} needs, is in none of the packages that it depends on")
        return self.libraries[name]


def program(directory: Path, package: str, path: str) -> dict[str, bytes]:
    """Returns a program of a package and all shared libraries that it needs, by their paths in a guest.

    Packages are kept in `directory`. Raises ArtefactError.
    """
    if not has_apt():
        raise ArtefactError(f"apt-get is not on this machine, and {package} comes from Debian")
    directory.mkdir(parents=True, exist_ok=True)
    content = dict(members(download(directory, package))).get(path)
    if content is None:
        raise ArtefactError(f"{package} has no {path}")
    collection = _Collection(directory)
    files = {path: content}
    waiting = [(package, content)]
    while waiting:
        dependent, data = waiting.pop()
        for name in needed.libraries(data):
            target = _LOADER if name == Path(_LOADER).name else f"{_LIBRARIES}/{name}"
            if target not in files:
                provider, library = collection.library(name, dependent)
                files[target] = library
                waiting.append((provider, library))
    return files
