"""Runs the small guests on a real Xen, as its domain 0 under QEMU TCG: are they right about the ABI?

`python tests/support/real_xen.py [NAME...]` (or `make oracle`). Needs qemu-system-x86_64 and Debian's
xen-hypervisor-4.17-amd64, which is downloaded, not installed. A guest that is domain 0 prints by console_io, and leaves
out the few checks that domain 0's privileges make wrong.
"""

import gzip
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from support import guests

_PACKAGE = "xen-hypervisor-4.17-amd64"
_XEN_CMDLINE = "console=com1 com1=115200,8n1 dom0_mem=64M guest_loglvl=none"
_LIMIT_S = 25
_LEFT_OUT = {
    "event_storm": "real Xen delivers one event after the other, and the guest never goes on",
    "endless": "it is about the console ring, which domain 0 has not",
    "flood": "it is about the console ring, which domain 0 has not",
    "hostile/races": "QEMU TCG does not get four CPUs through it in time",
    "hostile/user_edges": "QEMU TCG stores in part before it faults, and knows no #SS of addresses",
    "smp_code": "QEMU TCG itself goes on with code that another CPU has changed",
    "smp_many": "QEMU TCG does not get 32 CPUs through it in time",
}


def fetch_xen(directory: Path) -> Path:
    """Returns Debian's hypervisor as the ELF file that QEMU boots."""
    subprocess.run(["apt-get", "-qq", "download", _PACKAGE], cwd=directory, check=True, stderr=subprocess.DEVNULL)
    package = next(directory.glob("*.deb"))
    subprocess.run(["dpkg-deb", "-x", package, directory / "unpacked"], check=True)
    image = directory / "xen"
    image.write_bytes(gzip.decompress(next(directory.glob("unpacked/boot/xen-*.gz")).read_bytes()))
    return image


def boot(xen: Path, guest: Path, nr_vcpus: int = 1, limit_s: float = _LIMIT_S) -> str:
    """Returns what the machine prints until a verdict, a crash of domain 0, or the limit."""
    command = [
        *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "512", "-nodefaults", "-display", "none"),
        *(
            "-serial",
            "stdio",
            "-no-reboot",
            "-smp",
            str(nr_vcpus),
            "-kernel",
            str(xen),
            "-append",
            _XEN_CMDLINE,
            "-initrd",
            str(guest),
        ),
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace")
    lines: list[str] = []
    limit = threading.Timer(limit_s, process.kill)
    limit.start()
    try:
        for line in process.stdout or []:
            lines.append(line)
            if re.search(r"^VERDICT|Dom0 (crashed|halted)", line):
                break
    finally:
        limit.cancel()
        process.kill()
        process.wait()
    return "".join(lines)


def main() -> int:
    """Returns 0 if real Xen gives every guest the end that its comment expects."""
    wrong = 0
    with tempfile.TemporaryDirectory() as directory:
        xen = fetch_xen(Path(directory))
        for name in sys.argv[1:] or [name for name in guests.names() if name not in _LEFT_OUT]:
            guest = guests.load(name)
            text = boot(xen, guests.build(name, Path(directory)), guest.nr_vcpus, max(_LIMIT_S, guest.timeout_s))
            ended_well = "VERDICT: SUCCESS" in text if guest.expect_exit == 0 else "crashed" in text
            wrong += not ended_well
            print(f"{name}: {'as expected' if ended_well else text[-1500:]}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
