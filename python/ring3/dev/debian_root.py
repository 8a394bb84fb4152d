"""A Debian root file system of a few packages as an initramfs: what runs there is what Debian's users run.

Packages are unpacked, not installed: no maintainer script runs, so neither root nor a chroot is needed, and what is in
the tree follows from the packages' names and versions. What programs need at run time is in the packages; links that
only scripts would make (`/bin/sh`) are made here.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ring3.dev import cpio, debian, initramfs
from ring3.dev.apt import HOST
from ring3.dev.initramfs import ArtefactError

_MERGED = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
"""Top directories that are links into /usr."""

_TRIMMED = (
    *("./usr/share/doc", "./usr/share/man", "./usr/share/info", "./usr/share/locale", "./usr/share/lintian"),
    *("./usr/share/bug", "./usr/share/fonts", "./usr/share/gdb", "./usr/lib/x86_64-linux-gnu/gconv"),
    *("./usr/bin/*lto-dump*", "*/lto1", "*/libasan*", "*/libtsan*", "*/liblsan*", "*/libubsan*", "*.jmod"),
)
"""What no program here reads: documents, translations, link-time optimization, sanitizers."""

_FORMAT = 1
"""Raised when the same packages shall give another tree."""


def closure(names: Sequence[str]) -> list[str]:
    """Returns `name=version` of the packages and all that they depend on. Raises ArtefactError."""
    if not debian.has_apt():
        raise ArtefactError("apt-get is not on this machine, and the root file system comes from Debian")
    with tempfile.NamedTemporaryFile() as nothing:
        # An empty list of what is installed: all is needed.
        options = ["-o", f"Dir::State::status={nothing.name}", "-o", "APT::Install-Recommends=false"]
        command = ["apt-get", *options, "--simulate", "--yes", "install", *names]
        for is_last in (False, True):
            done = subprocess.run(command, capture_output=True, text=True)
            found = re.findall(r"^Inst (\S+) \((\S+) ", done.stdout, re.MULTILINE)
            if done.returncode == 0 and found:
                return sorted(f"{name}={version}" for name, version in found)
            if not is_last:
                HOST.refresh()
    raise ArtefactError(f"apt-get does not know how to install {' '.join(names)}: {done.stderr.strip()[-200:]}")


def _unpack_into(tree: Path, packages: Sequence[Path]) -> None:
    for name in _MERGED:
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    excluded = [f"--exclude={pattern}" for pattern in _TRIMMED]
    command = ["tar", "-x", "--no-same-owner", "--keep-directory-symlink", "--delay-directory-restore", *excluded]
    for package in packages:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as packed:
            subprocess.run([*command, "-C", tree], stdin=packed.stdout, check=True)
        if packed.returncode != 0:
            raise ArtefactError(f"{package.name} cannot be unpacked")
    for name in ("bench", "dev", "proc", "root", "sys", "tmp"):
        (tree / name).mkdir(exist_ok=True)
    if not (tree / "bin/sh").exists():
        (tree / "bin/sh").symlink_to("dash")


def unpack(cache: Path, names: Sequence[str]) -> Path:
    """Returns the directory with the packages' files, made in `cache` unless it is there. Raises ArtefactError."""
    listed = closure(names)
    digest = hashlib.sha256("\n".join([str(_FORMAT), *_TRIMMED, *listed]).encode()).hexdigest()[:16]
    tree = cache / f"debian-{digest}"
    if tree.exists():
        return tree
    print(f"downloading {len(listed)} Debian packages ...", flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="debian-part-") as name:
        downloads, partial = Path(name) / "packages", Path(name) / "tree"
        downloads.mkdir()
        done = subprocess.run(["apt-get", "-qq", "download", *listed], cwd=downloads, stderr=subprocess.DEVNULL)
        packages = sorted(downloads.glob("*.deb"))
        if done.returncode != 0 or len(packages) != len(listed):
            raise ArtefactError(f"apt-get brought {len(packages)} of {len(listed)} packages")
        _unpack_into(partial, packages)
        partial.rename(tree)
    return tree


def _tree_entries(tree: Path) -> Iterator[cpio.Entry]:
    """Yields the tree's members, a directory before what is in it."""
    for directory, directories, files in os.walk(tree):
        for name in sorted([*directories, *files]):
            path = Path(directory) / name
            relative = str(path.relative_to(tree))
            if path.is_symlink():
                yield cpio.symlink(relative, str(path.readlink()))
            elif path.is_dir():
                yield cpio.directory(relative)
            elif path.is_file():
                yield cpio.regular(relative, path.read_bytes(), path.stat().st_mode & 0o777)


def _base(cache: Path, names: Sequence[str]) -> Path:
    """Returns the archive of the tree, /init and busybox, packed once."""
    tree = unpack(cache, names)
    busybox = initramfs.find_busybox()
    own = [
        cpio.character_device("dev/console", 5, 1),
        cpio.regular("init", initramfs.INIT.encode(), 0o755),
        cpio.regular("usr/bin/busybox", busybox.read_bytes(), 0o755),
    ]
    for name in initramfs.applets(busybox):
        if not any((tree / "usr" / place / name).exists() for place in ("bin", "sbin")) and name != "busybox":
            own.append(cpio.symlink(f"usr/bin/{name}", "busybox"))
    packed = cpio.pack(own)
    target = cache / f"{tree.name}-{hashlib.sha256(packed).hexdigest()[:16]}.cpio"
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}.part")
        partial.write_bytes(cpio.pack(list(_tree_entries(tree))) + packed)
        partial.replace(target)
    return target


def image(cache: Path, target: Path, names: Sequence[str], extra: Mapping[str, bytes]) -> Path:
    """Writes an initramfs of the packages, the /init of `initramfs`, busybox for what they lack, and `extra`.

    `extra`: path to content, each executable, in directories of the tree. Linux unpacks archives that follow each other
    one after the other. None is compressed: unpacking would take longer than reading. Returns `target`. Raises
    ArtefactError.
    """
    shutil.copyfile(_base(cache, names), target)
    with target.open("ab") as archive:
        archive.write(cpio.pack([cpio.regular(path, data, 0o755) for path, data in sorted(extra.items())]))
    return target
