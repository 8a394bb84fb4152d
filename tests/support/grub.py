"""GRUB for Xen PV, out of Debian's packages."""

import io
import re
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from ring3.dev import debian
from ring3.dev.initramfs import ArtefactError

_PLATFORM = "x86_64-xen"
_MODULES = ("memdisk", "tar", "linux", "echo", "normal", "configfile", "gzio", "xzio")


def ready_made(cache: Path) -> Path:
    """Returns Debian's image with every module in it, which starts a shell. Raises ArtefactError."""
    image = cache / f"grub-{_PLATFORM}.bin"
    if not image.exists():
        if not debian.has_apt():
            raise ArtefactError("apt-get is not on this machine, and GRUB comes from Debian")
        files = dict(debian.members(debian.download(cache / "packages", "grub-xen-host")))
        partial = image.with_suffix(".part")
        partial.write_bytes(files[f"usr/lib/grub-xen/{image.name}"])
        partial.replace(image)
    return image


def make(cache: Path, directory: Path, files: Mapping[str, bytes]) -> Path:
    """Returns an image that runs `grub.cfg` of `files`, which are on its memdisk. Raises ArtefactError."""
    if not debian.has_apt():
        raise ArtefactError("apt-get is not on this machine, and GRUB comes from Debian")
    modules = directory / "modules"
    modules.mkdir()
    for path, data in debian.members(debian.download(cache / "packages", "grub-xen-bin")):
        if path.startswith(f"usr/lib/grub/{_PLATFORM}/"):
            (modules / Path(path).name).write_bytes(data)
    # The tool with the libraries that it was built for: a host without GRUB need not have them.
    for path, data in debian.program(cache / "packages", "grub-common", "usr/bin/grub-mkimage").items():
        (directory / Path(path).name).write_bytes(data)
    for name in ("ld-linux-x86-64.so.2", "grub-mkimage"):
        (directory / name).chmod(0o755)
    memdisk, config, image = directory / "memdisk.tar", directory / "grub.cfg", directory / "grub.bin"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    memdisk.write_bytes(archive.getvalue())
    config.write_bytes(files["grub.cfg"])
    loader = [directory / "ld-linux-x86-64.so.2", "--library-path", directory, directory / "grub-mkimage"]
    options = ["-O", _PLATFORM, "-d", modules, "-m", memdisk, "-c", config, "-p", "(memdisk)/", "-o", image]
    done = subprocess.run([*loader, *options, *_MODULES], capture_output=True, text=True)
    if done.returncode != 0:
        raise ArtefactError(f"grub-mkimage: {done.stderr}")
    return image


def plain(output: bytes) -> str:
    """Returns what a person would read: without the escape sequences of the terminal."""
    return re.sub(r"\x1b\[[?0-9;]*[A-Za-z]|\r", "", output.decode(errors="replace"))
