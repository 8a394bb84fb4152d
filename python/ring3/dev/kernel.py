"""Gets stock guest kernels from Debian's packages, without installing them."""

import os
import re
from pathlib import Path

from ring3.dev import debian
from ring3.dev.initramfs import ArtefactError

FLAVOURS = {"cloud": "linux-image-cloud-amd64", "main": "linux-image-amd64"}
"""Our short name of a kernel, and the metapackage that depends on the current one."""

_NO_APT = (
    "apt-get is not on this machine: name a PV kernel (Debian's vmlinuz-6.1.0-*-cloud-amd64 is one) in RING3_KERNEL"
)


def _image_package(metapackage: str) -> str:
    for package in debian.depends(metapackage):
        if re.match(r"linux-image-\d", package):
            return package
    raise ArtefactError(f"{metapackage} depends on no kernel image")


def _extract_vmlinuz(package: Path, target: Path) -> None:
    """Copies the one /boot/vmlinuz-* of the package; the modules stay packed."""
    for path, content in debian.members(package):
        if path.startswith("boot/vmlinuz-"):
            partial = target.with_suffix(f".{os.getpid()}.part")
            partial.write_bytes(content)
            partial.replace(target)
            return
    raise ArtefactError(f"{package.name} has no /boot/vmlinuz-*")


def fetch(directory: Path, flavour: str) -> Path:
    """Returns the kernel image of `flavour`, downloaded into `directory` unless it is there. Raises ArtefactError."""
    target = directory / f"vmlinuz-{flavour}"
    if target.exists():
        return target
    if not debian.has_apt():
        raise ArtefactError(_NO_APT)
    try:
        name = _image_package(FLAVOURS[flavour])
    except ArtefactError:
        debian.refresh_lists()
        name = _image_package(FLAVOURS[flavour])
    print(f"downloading {name} ...", flush=True)
    package = debian.download(directory, name)
    _extract_vmlinuz(package, target)
    package.unlink()
    return target


def default(directory: Path) -> Path:
    """Returns RING3_KERNEL if it is set, else the cloud kernel. Raises ArtefactError."""
    own = os.environ.get("RING3_KERNEL")
    if own is None:
        return fetch(directory, "cloud")
    if not Path(own).is_file():
        raise ArtefactError(f"RING3_KERNEL: no file {own}")
    return Path(own)
