"""Network devices with Linux's own front end: between domains, to the host, and a back end that is killed."""

import contextlib
import hashlib
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from ring3.dev import debian, initramfs, modules
from ring3.errors import Error
from ring3.libs.xenstore import XenstoreClient
from ring3.tools.services import Services
from support import disks, guests
from support.command import Ring3
from support.disks import Guest

pytestmark = [pytest.mark.guest, pytest.mark.stock, pytest.mark.timeout(400)]

MACS = ("00:16:3e:00:00:01", "00:16:3e:00:00:02")
NR_KILLS = 20
PATTERN = "yes ring3-network | head -c 20000000"
PATTERN_SHA256 = hashlib.sha256((b"ring3-network\n" * 1_500_000)[:20_000_000]).hexdigest()


@pytest.fixture(scope="session")
def ramdisk(guest_cache: Path, cloud_kernel: Path) -> Path:
    files = modules.files(guest_cache, cloud_kernel, ["xen-netfront"])
    files |= debian.program(guest_cache / "packages", "iperf3", "usr/bin/iperf3")
    return initramfs.build(guest_cache, "network", {**files, "test/script": disks.SHELL})


@pytest.fixture
def machine(ring3: Ring3) -> Iterator[Ring3]:
    assert ring3("up", "--memory", "640").exit_code == 0
    yield ring3


@pytest.fixture
def pair(machine: Ring3, cloud_kernel: Path, ramdisk: Path) -> Iterator[tuple[Guest, Guest]]:
    """Two domains on one switch, as 10.0.0.1 (with iperf3's server) and 10.0.0.2."""
    made = []
    for number, mac in enumerate(MACS, 1):
        spec = f"network=switch,switch=lab,mac={mac},ip=10.0.0.{number}"
        guest = Guest(machine, cloud_kernel, ramdisk, name=f"g{number}", vifs=[spec], vcpus=number)
        guest.ok("for i in $(seq 100); do [ -e /sys/class/net/eth0 ] && break; sleep 0.1; done")
        guest.ok(f"ip link set lo up; ip addr add 10.0.0.{number}/24 dev eth0; ip link set eth0 up")
        made.append(guest)
    made[0].ok("/usr/bin/iperf3 -s -D")
    first, second = made
    yield first, second
    for guest in made:
        guest.close()


def service_pid(machine: Ring3) -> int:
    while not (text := (Path(machine.environment["RING3_RUN_DIR"]) / "net.pid").read_text()):
        time.sleep(0.005)  # it is just being written
    return int(text)


def test_domains_talk(machine: Ring3, pair: tuple[Guest, Guest]) -> None:
    _first, second = pair
    second.ok("ping -c 3 -W 5 10.0.0.1")
    second.ok("ping -c 2 -W 5 -s 9000 10.0.0.1")
    for options in ("", "-R", "-u -b 50M", "-u -b 50M -R"):
        assert "receiver" in second.ok(f"/usr/bin/iperf3 -c 10.0.0.1 -t 2 {options}")

    second.ok("ip addr add 10.0.0.9/24 dev eth0; ! ping -c 1 -W 2 -I 10.0.0.9 10.0.0.1")
    second.ok("ip addr del 10.0.0.9/24 dev eth0")

    listed = machine("network-list", "g1", "g2").stdout.splitlines()
    assert listed[0].split() == ["Idx", "BE", "Mac", "Addr.", "handle", "state", "evt-ch", "tx-/rx-ring-ref", "BE-path"]
    assert [line.split()[2] for line in listed[1:]] == list(MACS)
    assert [line.split()[4] for line in listed[1:]] == ["4", "4"]

    twice = machine("network-attach", "g2", "network=switch", "switch=lab", f"mac={MACS[0]}")
    assert twice.exit_code == 1
    assert f"the address {MACS[0]} is vif" in twice.stderr, twice.describe()
    done = machine("network-attach", "g2", "network=switch", "switch=lab")
    assert done.exit_code == 0, done.describe()
    second.ok("for i in $(seq 100); do [ -e /sys/class/net/eth1 ] && break; sleep 0.1; done; ip link set eth1 up")
    assert len(machine("network-list", "g2").stdout.splitlines()) == 3
    done = machine("network-detach", "g2", "1")
    assert done.exit_code == 0, done.describe()
    second.ok("for i in $(seq 100); do [ -e /sys/class/net/eth1 ] || break; sleep 0.1; done; [ $i != 100 ]")
    second.ok("ping -c 1 -W 5 10.0.0.1")


def test_guests_go_on_when_the_back_end_is_killed(machine: Ring3, pair: tuple[Guest, Guest]) -> None:
    first, second = pair
    second.send("ping -c 1 -W 5 10.0.0.1 > /dev/null; /usr/bin/iperf3 -c 10.0.0.1 -t 15")
    pids = set()
    for _number in range(NR_KILLS):
        time.sleep(0.5)
        pid = service_pid(machine)
        pids.add(pid)
        os.kill(pid, 9)
        deadline = time.monotonic() + 30
        while service_pid(machine) == pid:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert len(pids) == NR_KILLS
    code, text = second.wait()
    assert (code, "receiver" in text) == (0, True), text
    # What comes after is whole.
    first.send("nc -l -p 7000 | sha256sum")
    second.ok(f"for i in $(seq 20); do {PATTERN} | nc 10.0.0.1 7000 && break; sleep 0.5; done")
    code, text = first.wait()
    assert PATTERN_SHA256 in text
    assert "BUG" not in second.ok("dmesg")
    assert_no_service_failed(machine)


def test_captures_are_read_by_tcpdump(machine: Ring3, pair: tuple[Guest, Guest], tmp_path: Path) -> None:
    """A file, a pipe, a vif and a switch at once; the back end is killed meanwhile."""
    if shutil.which("tcpdump") is None:
        pytest.skip("tcpdump is missing (Debian: package tcpdump)")
    _first, second = pair
    assert "does not exist" in machine("network-capture", "nobody", "-w", "x").stderr
    assert "no vif 1.7" in machine("network-capture", "g1", "7", "-w", "x").stderr
    assert "no switch other" in machine("network-capture", "--switch", "other", "-w", "x").stderr
    assert machine("network-capture", "-w", "x").exit_code == 2
    second.ok("ping -c 1 -W 5 10.0.0.1")

    whole = tmp_path / "switch.pcap"
    with (
        machine.start("network-capture", "--switch", "lab", "-w", str(whole)) as by_switch,
        machine.start("network-capture", "g1", MACS[0], "-c", "14") as by_vif,
        subprocess.Popen(
            ["tcpdump", "-l", "-n", "-e", "-r", "-", "icmp"], stdin=by_vif.stdout, stdout=subprocess.PIPE, text=True
        ) as reader,
    ):
        wait_for(lambda: whole.exists() and whole.stat().st_size == 24)
        time.sleep(1)
        # 3000 bytes are three fragments each way.
        second.ok("ping -c 2 -W 5 -s 3000 10.0.0.1")
        assert "receiver" in second.ok("/usr/bin/iperf3 -c 10.0.0.1 -t 1")
        pid = service_pid(machine)
        os.kill(pid, 9)
        wait_for(lambda: service_pid(machine) != pid)
        seen = whole.stat().st_size
        second.send("for i in $(seq 100); do ping -c 1 -W 1 -s 77 10.0.0.1; done")
        wait_for(lambda: whole.stat().st_size > seen + 77)
        second.wait()
        live, _errors = reader.communicate(timeout=60)
        assert by_vif.stderr is not None
        assert b"14 packets captured, 0 lost" in by_vif.stderr.read()
        assert f"{MACS[1]} > {MACS[0]}" in live, live
        assert "ICMP echo request" in live, live
        by_switch.terminate()
        _output, text = by_switch.communicate(timeout=30)
        assert (by_switch.returncode, b"packets captured" in text) == (0, True), text
    read = ["tcpdump", "-n", "-vv", "-r", str(whole)]
    icmp = subprocess.run([*read, "icmp"], capture_output=True, text=True, check=True).stdout
    assert "10.0.0.2 > 10.0.0.1: ICMP echo request" in icmp and "10.0.0.1 > 10.0.0.2: ICMP echo reply" in icmp
    assert "wrong icmp cksum" not in icmp, "bytes are those that were sent"
    tcp = subprocess.run([*read[:-3], "-r", str(whole), "tcp"], capture_output=True, text=True, check=True).stdout
    assert max(int(found) for found in re.findall(r"length (\d+)", tcp)) > 1500, "large packets are seen whole"


def assert_no_service_failed(machine: Ring3) -> None:
    logs = "".join(path.read_text() for path in Path(machine.environment["RING3_RUN_DIR"]).glob("*.log"))
    assert "Traceback" not in logs, logs[-4000:]


def wait_for(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_nonsense_in_every_key_harms_its_writer_alone(
    machine: Ring3, pair: tuple[Guest, Guest], tmp_path: Path
) -> None:
    """The third domain has no front end, so all that its nodes say is written here, in its place."""
    _first, second = pair
    image = guests.build("services", tmp_path)
    done = machine("create", "--kernel", image, "--memory", "16", "--name", "odd", "--vif", "network=switch,switch=lab")
    assert done.exit_code == 0, done.describe()
    domid = int(done.stdout.split()[-1])
    front, back = f"/local/domain/{domid}/device/vif/0", f"/local/domain/0/backend/vif/{domid}/0"
    pid = service_pid(machine)
    good = {"request-rx-copy": "1", "tx-ring-ref": "8", "rx-ring-ref": "9", "event-channel": "5"}
    queues = {"multi-queue-num-queues": "2", "queue-0/tx-ring-ref": "8", "queue-0/rx-ring-ref": "8"}
    attempts = [
        {},
        {"request-rx-copy": "0"},
        good,
        {**good, "tx-ring-ref": "4294967295"},
        {**good, "tx-ring-ref": "-1"},
        {**good, "rx-ring-ref": "9" * 300},
        {**good, "event-channel": "x\ny"},
        {**good, "event-channel-tx": "0"},
        {**good, "request-rx-copy": "\u0661"},
        {**good, "feature-gso-tcpv4": "maybe"},
        {**good, "multi-queue-num-queues": "0"},
        {**good, "multi-queue-num-queues": "1000000"},
        {**good, **queues},
    ]
    with XenstoreClient.connect(Path(machine.environment["RING3_RUN_DIR"]) / "xenstore") as xenstore:

        def wait_for_state(*states: str) -> None:
            deadline = time.monotonic() + 30
            while xenstore.read_text(f"{back}/state") not in states:
                assert time.monotonic() < deadline, (states, xenstore.read_text(f"{back}/state"))
                time.sleep(0.01)

        for nodes in attempts:
            xenstore.write(f"{front}/state", "1")
            wait_for_state("2")
            for name, value in nodes.items():
                xenstore.write(f"{front}/{name}", value)
            xenstore.write(f"{front}/state", "4")
            wait_for_state("5")
            for name in nodes:
                if xenstore.read_optional(f"{front}/{name}") is not None:
                    xenstore.rm(f"{front}/{name}")
        for state in ("", "99", "x", "3", "7", "6"):
            xenstore.write(f"{front}/state", state)
        wait_for_state("6")
        xenstore.rm(front)
    assert service_pid(machine) == pid, "the back end did not end over it"
    second.ok("ping -c 2 -W 5 10.0.0.1")
    assert machine("destroy", "odd").exit_code == 0
    assert service_pid(machine) == pid


def _has_passt() -> bool:
    has_route = subprocess.run(["ip", "route", "show", "default"], capture_output=True).stdout.strip() != b""
    return shutil.which("passt") is not None and has_route


@pytest.mark.skipif(not _has_passt(), reason="needs passt and a default route (Debian: package passt)")
def test_guest_and_host_talk_by_a_user_network(machine: Ring3, cloud_kernel: Path, ramdisk: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        other.close()
        guest = Guest(machine, cloud_kernel, ramdisk, vifs=[f"forward=tcp:127.0.0.1/{port}:80"])
        guest.ok("for i in $(seq 100); do [ -e /sys/class/net/eth0 ] && break; sleep 0.1; done")
        guest.ok("ip link set lo up; ip link set eth0 up; udhcpc -i eth0 -n -q -s /bin/true -t 20")
        route = subprocess.run(["ip", "-4", "route", "show", "default"], capture_output=True, text=True).stdout.split()
        gateway, device = route[route.index("via") + 1], route[route.index("dev") + 1]
        address = subprocess.run(["ip", "-4", "-o", "addr", "show", device], capture_output=True, text=True).stdout
        guest.ok(f"ip addr add {address.split()[3]} dev eth0; ip route add default via {gateway}")

        received = hashlib.sha256()

        def serve() -> None:
            client, _address = server.accept()
            with client:
                while data := client.recv(65536):
                    received.update(data)

        thread = threading.Thread(target=serve)
        thread.start()
        guest.ok(f"{PATTERN} | nc {gateway} {server.getsockname()[1]}")
        thread.join(60)
        assert received.hexdigest() == PATTERN_SHA256

        guest.send("nc -l -p 80 | sha256sum")
        deadline = time.monotonic() + 60
        while True:
            # passt takes the connection before the guest does, and drops it where nobody listens.
            with socket.create_connection(("127.0.0.1", port)) as client:
                try:
                    client.sendall(b"ring3-network\n" * 100_000)
                    client.shutdown(socket.SHUT_WR)
                    client.recv(1)
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
        _code, text = guest.wait()
        assert hashlib.sha256(b"ring3-network\n" * 100_000).hexdigest() in text

        # passt and the back end are killed, one, the other, or both: then no network is there at the successor's start.
        passt = f"vif/{guest.domid}/0"
        threading.Thread(target=_greet, args=(server,), daemon=True).start()
        fetch = f"timeout 3 nc -w 1 {gateway} {server.getsockname()[1]} < /dev/null"
        guest.ok(f"{fetch} | grep hello")
        guest.ok(f"(while [ ! -e /stop ]; do {fetch} > /dev/null; done) &")
        with Services(guest.run_dir / "dom0") as services:
            for number in range(NR_KILLS):
                time.sleep(0.1 + number % 5 / 10)
                killed = [services.pid(name) for name in (("net",), (passt,), (passt, "net"))[number % 3]]
                for pid in killed:
                    os.kill(pid, 9)
                wait_for(partial(_have_successors, services, ("net", passt), killed))
        guest.ok(f"touch /stop; for i in $(seq 30); do {fetch} | grep hello && break; sleep 1; done; [ $i != 30 ]")
        state = f"/local/domain/0/backend/vif/{guest.domid}/0/state"
        with XenstoreClient.connect(guest.run_dir / "xenstore") as xenstore:
            assert xenstore.read_text(state) == "4"
        assert_no_service_failed(machine)
        guest.close()


def _greet(server: socket.socket) -> None:
    """Says hello to whoever connects, until the socket is closed."""
    with contextlib.suppress(OSError):
        while True:
            client, _address = server.accept()
            with client, contextlib.suppress(OSError):
                client.sendall(b"hello\n")


def _have_successors(services: Services, names: tuple[str, ...], killed: list[int]) -> bool:
    try:
        return all(services.pid(name) not in killed for name in names)
    except Error:  # one is not there yet
        return False


@pytest.fixture
def bridge() -> Iterator[list[str]]:
    """A network namespace with a bridge, 10.1.0.1; the words that run a command in it."""
    name = f"ring3-{os.getpid()}"
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        pytest.skip("a bridge needs root and /dev/net/tun")
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode != 0:
        pytest.skip("no network namespace can be made here")
    try:
        for words in ("link set lo up", "link add br0 type bridge", "addr add 10.1.0.1/24 dev br0", "link set br0 up"):
            subprocess.run(["ip", "-n", name, *words.split()], check=True)
        yield ["ip", "netns", "exec", name]
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def test_guest_and_host_talk_by_a_bridge(machine: Ring3, cloud_kernel: Path, ramdisk: Path, bridge: list[str]) -> None:
    guest = Guest(machine, cloud_kernel, ramdisk)
    attach = [*bridge, machine.path, "network-attach", "guest"]
    done = subprocess.run([*attach, "bridge=none"], env=machine.environment, capture_output=True, text=True)
    assert (done.returncode, "no bridge none" in done.stderr) == (1, True), done.stderr
    done = subprocess.run(
        [*attach, "bridge=br0", "vifname=ring3tap"], env=machine.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    guest.ok("for i in $(seq 100); do [ -e /sys/class/net/eth0 ] && break; sleep 0.1; done")
    guest.ok("ip link set lo up; ip addr add 10.1.0.2/24 dev eth0; ip link set eth0 up; ping -c 3 -W 5 10.1.0.1")
    guest.send("nc -l -p 7001 | sha256sum")
    send = f"for i in $(seq 50); do {PATTERN} | busybox nc 10.1.0.2 7001 && break; sleep 0.2; done"
    subprocess.run([*bridge, "sh", "-c", send], check=True, timeout=120)
    assert PATTERN_SHA256 in guest.wait()[1]
    os.kill(service_pid(machine), 9)
    listen = [*bridge, "sh", "-c", "busybox nc -l -p 7002 | sha256sum"]
    # nc ends the connection with the end of its own input.
    received = subprocess.Popen(listen, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    guest.ok(f"for i in $(seq 20); do {PATTERN} | nc 10.1.0.1 7002 && break; sleep 0.5; done")
    output, _errors = received.communicate(timeout=60)
    assert PATTERN_SHA256 in output.decode()
    assert machine("network-detach", "guest", "0").exit_code == 0
    guest.close()
