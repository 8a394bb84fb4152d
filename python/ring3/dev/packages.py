"""Makes sure that the Debian packages a target needs are there: installs them as root, else says what to install.

Runs before the virtual environment exists, so it uses the standard library alone and is started as a file.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def _has_command(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name) is not None


def _has_file(path: str) -> Callable[[], bool]:
    return lambda: Path(path).exists()


def _has_static_busybox() -> bool:
    path = shutil.which("busybox")
    return path is not None and b"/lib64/ld-linux-x86-64.so.2" not in Path(path).read_bytes()


def _has_venv() -> bool:
    # Debian splits ensurepip off; pyenv and upstream's Python carry it.
    return subprocess.run([sys.executable, "-c", "import ensurepip, venv"], capture_output=True).returncode == 0


_PRESENT: dict[str, Callable[[], bool]] = {
    "busybox-static": _has_static_busybox,
    "dpkg": _has_command("dpkg-deb"),
    "gcc": _has_command("gcc"),
    "gcc-multilib": _has_file("/usr/lib32/libc.a"),
    "libc6-dev": _has_file("/usr/include/stdio.h"),
    "libxen-dev": _has_file("/usr/include/xen/xen.h"),
    "python3-venv": _has_venv,
    "qemu-system-x86": _has_command("qemu-system-x86_64"),
}


def missing(packages: list[str]) -> list[str]:
    """Returns those whose content is not on this machine, however it came here."""
    return [name for name in packages if not _PRESENT.get(name, _has_command(name))()]


def _apt_get(*arguments: str) -> bool:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(["apt-get", "-qq", *arguments], env=environment, stdout=sys.stderr).returncode == 0


def ensure(packages: list[str]) -> bool:
    """Installs what is missing where that is possible; returns whether all is there."""
    lacking = missing(packages)
    if not lacking:
        return True
    command = f"apt-get install {' '.join(lacking)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"missing: {' '.join(lacking)}. On Debian, as root: {command}", file=sys.stderr)
        return False
    print(f"installing {' '.join(lacking)} ...", file=sys.stderr)
    install = ["install", "-y", "--no-install-recommends", *lacking]
    if not _apt_get(*install):
        _apt_get("update")
        _apt_get(*install)
    if still := missing(lacking):
        print(f"could not install {' '.join(still)}; try: {command}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(0 if ensure(sys.argv[1:]) else 1)
