"""Gets stock guest kernels from Debian's packages, without installing them."""

import os
import re
from pathlib import Path

from ring3.dev import apt as apt_sources
from ring3.dev import debian
from ring3.dev.apt import HOST, Apt
from ring3.dev.initramfs import ArtefactError

FLAVOURS = {"cloud": "linux-image-cloud-amd64", "main": "linux-image-amd64", "rt": "linux-image-rt-amd64"}
"""Our short name of a kernel, and the metapackage that depends on the current one."""

_NO_APT = (
    "apt-get is not on this machine: name a PV kernel (Debian's vmlinuz-6.1.0-*-cloud-amd64 is one) in RING3_KERNEL"
)


def _image_package(metapackage: str, apt: Apt) -> str:
    for package in debian.depends(metapackage, apt):
        if re.match(r"linux-image-\d", package):
            return package
    raise ArtefactError(f"{metapackage} depends on no kernel image")


def parts(image: str, apt: Apt = HOST) -> list[str]:
    """Returns the packages that a kernel's files are in: one until Debian 13, later three, of which it is one."""
    release = image.removeprefix("linux-image-")
    others = (f"linux-binary-{release}", f"linux-modules-{release}")
    try:
        needed = debian.depends(image, apt)
    except ArtefactError:  # the archive has a newer one, and this one was downloaded before
        needed = []
    return [image, *(package for package in needed if package in others)]


def _image_of(package: Path) -> bytes | None:
    """Returns the kernel image of a package, if it has one; the modules stay packed."""
    for path, content in debian.members(package):
        if path.startswith("boot/vmlinuz-") or re.fullmatch(r"(usr/)?lib/modules/[^/]+/vmlinuz", path):
            return content
    return None


def fetch(directory: Path, flavour: str, suite: str | None = None) -> Path:
    """Returns the kernel image of `flavour`, downloaded into `directory` unless it is there.

    The suite of Debian's is that of the machine unless one is named. Raises ArtefactError.
    """
    target = directory / (f"vmlinuz-{flavour}" if suite is None else f"vmlinuz-{suite}-{flavour}")
    if target.exists():
        return target
    if not debian.has_apt():
        raise ArtefactError(_NO_APT)
    apt = HOST if suite is None else apt_sources.suite(directory, suite)
    try:
        name = _image_package(FLAVOURS[flavour], apt)
    except ArtefactError:
        apt.refresh()
        name = _image_package(FLAVOURS[flavour], apt)
    print(f"downloading {name} ...", flush=True)
    for part in parts(name, apt):
        package = debian.download(directory, part, apt)
        image = _image_of(package)
        package.unlink()
        if image is not None:
            partial = target.with_suffix(f".{os.getpid()}.part")
            partial.write_bytes(image)
            partial.replace(target)
            return target
    raise ArtefactError(f"{name} has no vmlinuz")


def default(directory: Path) -> Path:
    """Returns RING3_KERNEL if it is set, else the cloud kernel. Raises ArtefactError."""
    own = os.environ.get("RING3_KERNEL")
    if own is None:
        return fetch(directory, "cloud")
    if not Path(own).is_file():
        raise ArtefactError(f"RING3_KERNEL: no file {own}")
    return Path(own)
