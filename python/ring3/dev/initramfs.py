"""The busybox initramfs of the demonstration, the tests and the benchmark.

The kernel command line says what its /init does:

- `ring3.run=PATH` runs that script with `sh` and ends the guest; without it an interactive shell starts, and leaving
  that ends the guest.
- `ring3.end=poweroff|reboot|panic|halt` is how it ends (default: poweroff).

Modules in /lib/modules (see `modules`) are loaded before that, in the order of their names.

`RING3-SHELL-READY` on a line of its own tells that user space is up and the shell (or script) comes next.
"""

import gzip
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from ring3.dev import cpio

MARKER = "RING3-SHELL-READY"
"""What /init prints when user space is up."""

MODULES = "lib/modules"
"""Where /init looks for kernel modules."""

INIT = f"""#!/bin/busybox sh
export PATH=/bin HOME=/ TERM="${{TERM:-linux}}" PS1='\\h:\\w\\$ '
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/shm /dev/pts
read -r cmdline < /proc/cmdline
run= end=poweroff name=guest
for word in $cmdline; do
    case $word in
        ring3.run=*) run=${{word#*=}} ;;
        ring3.end=*) end=${{word#*=}} ;;
        ring3.name=*) name=${{word#*=}} ;;
    esac
done
hostname "$name"
for module in /{MODULES}/*.ko; do
    [ -e "$module" ] && insmod "$module"
done
echo {MARKER}
if [ -n "$run" ]; then
    sh "$run"
    echo "ring3.run: $run ended with $?"
else
    setsid cttyhack sh
fi
case $end in
    reboot) reboot -f ;;
    panic) echo c > /proc/sysrq-trigger ;;
    halt) halt -f ;;
    *) poweroff -f ;;
esac
# Not reached: process 1 must not end before the machine does.
while :; do sleep 1; done
"""


class ArtefactError(Exception):
    """Something that the guest is made of is missing; the message says what to install."""


def find_busybox() -> Path:
    """Returns the statically linked busybox. Raises ArtefactError."""
    for candidate in (os.environ.get("RING3_BUSYBOX"), "/bin/busybox", shutil.which("busybox")):
        if candidate and Path(candidate).is_file():
            data = Path(candidate).read_bytes()
            if b"/lib64/ld-linux-x86-64.so.2" not in data:
                return Path(candidate)
    raise ArtefactError("no static busybox: install Debian's busybox-static, or name one in RING3_BUSYBOX")


def applets(busybox: Path) -> list[str]:
    """Returns the names of the commands that a busybox has."""
    return sorted(subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split())


def entries(busybox: Path, extra: Mapping[str, bytes]) -> list[cpio.Entry]:
    """Returns the members. `extra`: path to content, each executable; its directories are made."""
    made = {"bin", "dev", "proc", "sys", "tmp", "root"}
    for path in extra:
        made.update(str(parent) for parent in Path(path).parents if str(parent) != ".")
    members = [cpio.directory(path) for path in sorted(made)]
    members += [
        cpio.character_device("dev/console", 5, 1),
        cpio.character_device("dev/null", 1, 3, 0o666),
        cpio.regular("init", INIT.encode(), 0o755),
        cpio.regular("bin/busybox", busybox.read_bytes(), 0o755),
    ]
    members += [cpio.symlink(f"bin/{name}", "busybox") for name in applets(busybox) if name != "busybox"]
    members += [cpio.regular(path, data, 0o755) for path, data in sorted(extra.items())]
    return members


def build(directory: Path, name: str = "initramfs", extra: Mapping[str, bytes] | None = None) -> Path:
    """Packs the image into `directory` and returns its path; an image with the same content is not packed again."""
    busybox = find_busybox()
    archive = cpio.pack(entries(busybox, extra or {}))
    digest = hashlib.sha256(archive).hexdigest()[:16]
    image = directory / f"{name}-{digest}.cpio.gz"
    if not image.exists():
        directory.mkdir(parents=True, exist_ok=True)
        partial = image.with_suffix(f".{os.getpid()}.part")
        partial.write_bytes(gzip.compress(archive, compresslevel=6, mtime=0))
        partial.replace(image)
    return image
