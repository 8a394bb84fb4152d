"""Gets stock guest kernels from Debian's packages, without installing them."""

import io
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from ring3.dev.initramfs import ArtefactError

FLAVOURS = {"cloud": "linux-image-cloud-amd64", "main": "linux-image-amd64"}
"""Our short name of a kernel, and the metapackage that depends on the current one."""

_NO_APT = (
    "apt-get is not on this machine: name a PV kernel (Debian's vmlinuz-6.1.0-*-cloud-amd64 is one) in RING3_KERNEL"
)


def _image_package(metapackage: str) -> str:
    depends = subprocess.run(["apt-cache", "depends", metapackage], capture_output=True, text=True).stdout
    found = re.search(r"Depends: (linux-image-\d\S*)", depends)
    if found is None:
        raise ArtefactError(f"apt-cache knows no {metapackage}; as root: apt-get update")
    return found.group(1)


def _refresh_lists() -> None:
    if os.geteuid() == 0:
        subprocess.run(["apt-get", "-qq", "update"], check=False)


def _extract_vmlinuz(package: Path, target: Path) -> None:
    """Copies the one /boot/vmlinuz-* of the package; the modules stay packed."""
    content = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            if member.isfile() and member.name.startswith("./boot/vmlinuz-"):
                source = archive.extractfile(member)
                if source is not None:
                    partial = target.with_suffix(f".{os.getpid()}.part")
                    partial.write_bytes(source.read())
                    partial.replace(target)
                    return
    raise ArtefactError(f"{package.name} has no /boot/vmlinuz-*")


def fetch(directory: Path, flavour: str) -> Path:
    """Returns the kernel image of `flavour`, downloaded into `directory` unless it is there. Raises ArtefactError."""
    target = directory / f"vmlinuz-{flavour}"
    if target.exists():
        return target
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise ArtefactError(_NO_APT)
    downloads = directory / f"download-{flavour}-{os.getpid()}"
    downloads.mkdir(parents=True, exist_ok=True)
    try:
        for attempt in ("as it is", "after an update"):
            try:
                package = _image_package(FLAVOURS[flavour])
                print(f"downloading {package} ...", flush=True)
                subprocess.run(
                    ["apt-get", "-qq", "download", package], cwd=downloads, check=True, stderr=subprocess.DEVNULL
                )
                break
            except (ArtefactError, subprocess.CalledProcessError) as error:
                if attempt == "after an update":
                    raise ArtefactError(f"no kernel from apt-get ({error}). {_NO_APT.split(': ')[1]}") from error
                _refresh_lists()
        packages = list(downloads.glob("*.deb"))
        if len(packages) != 1:
            raise ArtefactError("apt-get download left no package")
        _extract_vmlinuz(packages[0], target)
    finally:
        shutil.rmtree(downloads)
    return target


def default(directory: Path) -> Path:
    """Returns RING3_KERNEL if it is set, else the cloud kernel. Raises ArtefactError."""
    own = os.environ.get("RING3_KERNEL")
    if own is None:
        return fetch(directory, "cloud")
    if not Path(own).is_file():
        raise ArtefactError(f"RING3_KERNEL: no file {own}")
    return Path(own)
