"""Network throughput by iperf3: guest to host, host to guest, guest to guest; Ring3 and QEMU TCG in turns.

Both reach the host by passt, with the same options; two guests are connected by Ring3's switch, and by QEMU's stream
socket. `python bench/network.py [--seconds 4] [--rounds 2]` prints a table; the best of the rounds counts.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from contest import ContestError
from shell import SCRIPT, SCRIPT_PATH, Guest, create, machine

from ring3.dev import debian, initramfs, kernel, modules

REPOSITORY = Path(__file__).parent.parent
MEMORY_MIB = 256
PORT = 15201
MACS = ("00:16:3e:00:00:01", "00:16:3e:00:00:02")
MODULES = {"Ring3": ["xen-netfront"], "QEMU TCG": ["virtio-pci", "virtio-net"]}
ROWS = ("guest to host", "host to guest", "guest to guest")
_MBITS = re.compile(r"([0-9.]+) Mbits/sec +receiver")


def ramdisk(cache: Path, image: Path, name: str) -> Path:
    """Returns the initramfs of a contestant: iperf3, and the modules for its network card."""
    files = modules.files(cache, image, MODULES[name])
    files |= debian.program(cache / "packages", "iperf3", "usr/bin/iperf3")
    return initramfs.build(cache, f"network-{name.split()[0].lower()}", {**files, SCRIPT_PATH: SCRIPT})


def host_network() -> tuple[str, str]:
    """Returns gateway and own address, with its prefix, as passt gives them to a guest. Raises ContestError."""
    route = subprocess.run(["ip", "-4", "route", "show", "default"], capture_output=True, text=True).stdout.split()
    if "via" not in route:
        raise ContestError("the host has no default route, which passt needs")
    device = route[route.index("dev") + 1]
    address = subprocess.run(["ip", "-4", "-o", "addr", "show", device], capture_output=True, text=True).stdout
    return route[route.index("via") + 1], address.split()[3]


def _mbits(text: str) -> float:
    found = _MBITS.search(text)
    if found is None:
        raise ContestError(f"no figure from iperf3: {text[-500:]}")
    return float(found[1])


def _to_host(guest: Guest, seconds: int) -> dict[str, float]:
    """Measures both directions between a guest with a user network and the host."""
    gateway, address = host_network()
    guest(f"ip link set eth0 mtu 65520 up; ip addr add {address} dev eth0; ip route add default via {gateway}")
    server = subprocess.Popen(
        ["iperf3", "-s", "-p", str(PORT + 1)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(0.5)
        sent = guest(f"/usr/bin/iperf3 -f m -t {seconds} -c {gateway} -p {PORT + 1}")
        guest("/usr/bin/iperf3 -s -D; sleep 1")
        command = ["iperf3", "-f", "m", "-t", str(seconds), "-c", "127.0.0.1", "-p", str(PORT)]
        received = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    finally:
        server.terminate()
        server.wait()
    return {"guest to host": _mbits(sent), "host to guest": _mbits(received)}


def _to_guest(first: Guest, second: Guest, seconds: int) -> dict[str, float]:
    for number, guest in enumerate((first, second), 1):
        guest(f"ip link set eth0 up; ip addr add 10.0.0.{number}/24 dev eth0")
    first("/usr/bin/iperf3 -s -D; sleep 1")
    second("ping -c 1 -W 5 10.0.0.1")
    return {"guest to guest": _mbits(second(f"/usr/bin/iperf3 -f m -t {seconds} -c 10.0.0.1"))}


@contextmanager
def _ring3_guests(image: Path, disk: Path, specs: list[str]) -> Iterator[list[Guest]]:
    with machine(MEMORY_MIB * len(specs) + 64):
        yield [create(f"g{number}", image, disk, MEMORY_MIB, "--vif", spec) for number, spec in enumerate(specs)]


def _ring3(image: Path, disk: Path, seconds: int) -> dict[str, float]:
    with _ring3_guests(image, disk, [f"forward=tcp:127.0.0.1/{PORT}:5201"]) as [guest]:
        values = _to_host(guest, seconds)
    with _ring3_guests(image, disk, [f"switch=bench,mac={mac}" for mac in MACS]) as [first, second]:
        return values | _to_guest(first, second, seconds)


def _qemu_guest(image: Path, disk: Path, netdev: str, mac: str) -> Guest:
    command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-nodefaults", "-no-user-config"]
    command += ["-display", "none", "-serial", "stdio", "-no-reboot", "-m", str(MEMORY_MIB), "-kernel", str(image)]
    command += ["-initrd", str(disk), "-append", "console=ttyS0 quiet ring3.run=/test/script"]
    command += ["-netdev", f"stream,id=n,addr.type=unix,{netdev}", "-device", f"virtio-net-pci,netdev=n,mac={mac}"]
    return Guest(command)


def _qemu(image: Path, disk: Path, seconds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="ring3-net-") as place, ExitStack() as stack:
        path = f"{place}/passt.sock"
        command = ["passt", "--foreground", "--quiet", "--socket", path, "--tcp-ports", f"127.0.0.1/{PORT}:5201"]
        if os.geteuid() == 0:
            command += ["--runas", "0:0"]
        passt = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        stack.callback(passt.wait)
        stack.callback(passt.terminate)
        while not Path(path).exists() and passt.poll() is None:
            time.sleep(0.05)
        guest = _qemu_guest(image, disk, f"server=off,addr.path={path}", MACS[0])
        stack.callback(guest.end)
        values = _to_host(guest, seconds)
    with tempfile.TemporaryDirectory(prefix="ring3-net-") as place, ExitStack() as stack:
        guests = []
        for is_server, mac in ((True, MACS[0]), (False, MACS[1])):
            side = f"server={'on' if is_server else 'off'},addr.path={place}/wire.sock"
            guests.append(_qemu_guest(image, disk, side, mac))
            stack.callback(guests[-1].end)
        return values | _to_guest(guests[0], guests[1], seconds)


CONTESTANTS: dict[str, Callable[[Path, Path, int], dict[str, float]]] = {"Ring3": _ring3, "QEMU TCG": _qemu}


def measure(cache: Path, rounds: int, seconds: int) -> dict[str, dict[str, float]]:
    """Returns each contestant's best Mbit/s of each row. Raises ContestError."""
    image = kernel.default(cache)
    best: dict[str, dict[str, float]] = {name: dict.fromkeys(ROWS, 0.0) for name in CONTESTANTS}
    for number in range(1, rounds + 1):
        for name, contestant in CONTESTANTS.items():
            print(f"round {number} of {rounds}, network: {name} ...", file=sys.stderr, flush=True)
            for row, value in contestant(image, ramdisk(cache, image, name), seconds).items():
                best[name][row] = max(best[name][row], value)
    return best


def table(best: dict[str, dict[str, float]]) -> str:
    """Returns the rows in Markdown."""
    lines = ["| iperf3, Mbit/s | QEMU TCG | Ring3 | Ring3 / TCG |", "|---|---:|---:|---:|"]
    for row in ROWS:
        ours, theirs = best["Ring3"][row], best["QEMU TCG"][row]
        lines.append(f"| {row} | {theirs:.0f} | {ours:.0f} | {ours / theirs:.2f} |")
    return "\n".join(lines)


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Network throughput, Ring3 and QEMU TCG in turns.")
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement; default: 4")
    parser.add_argument("--rounds", type=int, default=2, help="default: 2")
    options = parser.parse_args()
    cache = Path(os.environ.get("RING3_GUEST_CACHE", REPOSITORY / ".cache" / "guest"))
    print(table(measure(cache, options.rounds, options.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
