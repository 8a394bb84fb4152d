"""Debian images: mmdebstrap installs the packages, mke2fs makes the disk; neither needs root (fakeroot stands in).

The installed packages are kept as an archive, by suite and packages: another image of the same is made of it in
seconds. Times and identifiers are fixed, so the same archive gives the same files; mke2fs before 1.47.1 takes inodes'
change times from the host, so the disk's bytes differ by those.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ring3.errors import ConfigError, Error
from ring3.tools.images import store
from ring3.tools.images.store import Image

_KERNEL: Final = "linux-image-cloud-amd64"
"""Unless a package of a kernel is asked for."""
_PACKAGES: Final = (
    *("initramfs-tools", "kmod", "udev", "systemd-sysv", "systemd-resolved"),
    *("login", "passwd", "e2fsprogs", "iproute2", "iputils-ping", "ca-certificates"),
)
"""What boots, logs in and reaches the network; apt comes with the variant."""
_VARIANT: Final = "minbase"
_EPOCH: Final = "1700000000"
"""The time of all files that are newer, and of the file system."""
_SIZE: Final = re.compile(r"([1-9][0-9]*)([MGT])")
_FEATURES: Final = "has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize,dir_index,filetype"
"""What Debian's mke2fs.conf gives an ext4: the host's is not read, and without it there would be no journal."""
_FORMAT: Final = 3
"""Raised when the same packages shall give another archive."""
_SUBORDINATES: Final = (Path("/etc/subuid"), Path("/etc/subgid"))
_NAMESPACE: Final = uuid.UUID("b1f6a5de-3a2f-5d6e-9f0a-52494e473300")

_FSTAB: Final = "/dev/xvda / ext4 errors=remount-ro 0 1"
_CONF: Final = "$1/etc/initramfs-tools/conf.d"
_WRITE_SETTINGS: Final = f'echo "{_FSTAB}" > "$1/etc/fstab" && mkdir -p "{_CONF}" && echo FSTYPE=ext4 > "{_CONF}/root"'
"""Before the kernel comes: so its initramfs checks the root. Later, when it is mounted, a repair ends in a reboot."""
_OVERLAY: Final = {
    "etc/systemd/network/20-vif.network": "[Match]\nName=e*\n\n[Network]\nDHCP=yes\n",
}
_UNITS: Final = "etc/systemd/system"
_LINKS: Final = {
    f"{_UNITS}/multi-user.target.wants/systemd-networkd.service": "/lib/systemd/system/systemd-networkd.service",
    f"{_UNITS}/sockets.target.wants/systemd-networkd.socket": "/lib/systemd/system/systemd-networkd.socket",
}
_MAKE_DISK: Final = r"""
tar -x --numeric-owner --exclude='./dev/*' -C "$TREE" -f "$ARCHIVE"
cp -R --no-preserve=ownership "$OVERLAY/." "$TREE"
sed -i 's/^root:[^:]*:/root::/' "$TREE/etc/shadow"
find "$TREE" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
set -- -O "$FEATURES" -I 256 -b 4096 -L root -U "$UUID" -E "hash_seed=$UUID,root_owner=0:0"
mke2fs -q -F -t ext4 "$@" -d "$TREE" "$DISK" "$SIZE"
"""


@dataclass(frozen=True, slots=True)
class DebianOptions:
    """What an image is to be."""

    suite: str = "bookworm"
    size: str = "2G"
    packages: tuple[str, ...] = ()
    mirror: str | None = None
    memory_mib: int = 512


def make(name: str, options: DebianOptions) -> Image:
    """Makes an image. Raises ConfigError, Error."""
    if not _SIZE.fullmatch(options.size):
        raise ConfigError(f"{options.size!r} is no size such as 2G or 700M", key="size")
    programs = ["mmdebstrap", "mke2fs", "tar", *(["fakeroot"] if os.geteuid() != 0 else [])]
    missing = [program for program in programs if shutil.which(program, path=_path()) is None]
    if missing:
        raise Error(f"an image needs {', '.join(missing)} (Debian: mmdebstrap, e2fsprogs, fakeroot)")
    _check_rights()
    with store.new(name) as image:
        _fill(image, name, _archive(options), options)
    return store.find(name)


def _check_rights() -> None:
    """Raises Error where mmdebstrap has no way to install packages as this user."""
    if os.geteuid() == 0 or shutil.which("fakechroot", path=_path()) is not None:
        return
    if shutil.which("newuidmap", path=_path()) is not None and _has_subuids():
        return
    raise Error(
        "without root an image needs fakechroot, or newuidmap and a range of this user in /etc/subuid and /etc/subgid"
        " (Debian: fakechroot, or uidmap)"
    )


def _has_subuids() -> bool:
    user = pwd.getpwuid(os.geteuid())
    names = (user.pw_name, str(user.pw_uid))
    for path in _SUBORDINATES:
        try:
            lines = path.read_text().splitlines()
        except OSError:
            return False
        if not any(line.split(":")[0] in names for line in lines):
            return False
    return True


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _archive(options: DebianOptions) -> Path:
    """Returns the archive of the installed packages, made unless it is there."""
    has_kernel = any(package.startswith("linux-image-") for package in options.packages)
    packages = sorted({*_PACKAGES, *options.packages, *([] if has_kernel else [_KERNEL])})
    for word in (options.suite, *packages):
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]*", word):
            raise ConfigError(f"{word!r} is no suite or package", key="image")
    key = "\n".join([str(_FORMAT), _VARIANT, options.suite, options.mirror or "", *packages])
    target = store.cache() / f"debian-{options.suite}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.tar"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"installing {len(packages)} packages of {options.suite} and what they need ...", flush=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.tar")
    command = ["mmdebstrap", "--mode=auto", f"--variant={_VARIANT}", f"--include={','.join(packages)}"]
    command += [
        f"--essential-hook={_WRITE_SETTINGS}",
        options.suite,
        str(partial),
        *([options.mirror] if options.mirror else []),
    ]
    try:
        _run(command, {})
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _fill(image: Image, name: str, archive: Path, options: DebianOptions) -> None:
    with tempfile.TemporaryDirectory(dir=store.directory(), prefix=".tree-") as place:
        tree, overlay = Path(place) / "tree", Path(place) / "overlay"
        tree.mkdir(mode=0o755)
        _write_overlay(overlay, name)
        identifier = str(uuid.uuid5(_NAMESPACE, f"{name}\n{archive.name}\n{options.size}"))
        setting = {"TREE": str(tree), "OVERLAY": str(overlay), "ARCHIVE": str(archive), "DISK": str(image.disk)}
        script = ["sh", "-ec", _MAKE_DISK]
        command = script if os.geteuid() == 0 else ["fakeroot", "--", *script]
        _run(command, {**setting, "UUID": identifier, "SIZE": options.size, "FEATURES": _FEATURES})
        for pattern, target in (("vmlinuz-*", image.kernel), ("initrd.img-*", image.ramdisk)):
            found = sorted((tree / "boot").glob(pattern))
            if not found:
                raise Error(f"the packages have no /boot/{pattern}")
            shutil.copyfile(found[-1], target)
    final = store.directory() / name  # where the image is going to be
    image.config.write_text(_config(Image(final), options))


def _write_overlay(overlay: Path, name: str) -> None:
    own = {"etc/hostname": f"{name}\n", "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost\n"}
    for path, text in {**_OVERLAY, **own}.items():
        (overlay / path).parent.mkdir(parents=True, exist_ok=True)
        (overlay / path).write_text(text)
        (overlay / path).chmod(0o644)
    for path, target in _LINKS.items():
        (overlay / path).parent.mkdir(parents=True, exist_ok=True)
        (overlay / path).symlink_to(target)


def _config(image: Image, options: DebianOptions) -> str:
    return f"""# Debian {options.suite}. Root has no password: its console is this machine's user's alone.
name = "{image.name}"
type = "pv"
kernel = "{image.kernel}"
ramdisk = "{image.ramdisk}"
root = "/dev/xvda ro"
extra = "console=hvc0"
memory = {options.memory_mib}
vcpus = 1
disk = [ "format=raw, vdev=xvda, access=rw, target={image.disk}" ]
vif = [ "network=user" ]
"""


def _run(command: Sequence[str], setting: dict[str, str]) -> None:
    environment = {
        **os.environ,
        "PATH": _path(),
        "SOURCE_DATE_EPOCH": _EPOCH,
        "E2FSPROGS_FAKE_TIME": _EPOCH,
        "MKE2FS_CONFIG": os.devnull,  # what the host prefers is not ours to take
        **setting,
    }
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise Error(f"{command[0]} failed with {done.returncode}: {_reason(done.stderr)}")


def _reason(text: str) -> str:
    """Returns what is of use of what a program has said: apt's errors without the command that had them, or the end."""
    errors = [line.removeprefix("E: ") for line in text.splitlines() if line.startswith("E: ")]
    reasons = [error for error in errors if "apt-get " not in error and not error.startswith("mmdebstrap ")]
    return "; ".join(reasons[:3]) if reasons else text.strip()[-600:]
