"""`ring3 up`, `down`, `create`, `destroy`, `console`: a machine in the background and its domains."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import Final

from ring3.errors import ConfigError, ConnectionLostError, DomainNotFound, Error, XenstoreRequestError
from ring3.libs import console_log
from ring3.libs.xenstore import XenstoreClient
from ring3.tools import launch, rundir, store_nodes
from ring3.tools.config import DomainConfig, OnReboot
from ring3.tools.console_stream import ConsoleStream
from ring3.tools.crash import crash_report
from ring3.tools.ending import Ending, ending_of
from ring3.tools.launch import MachineOptions
from ring3.tools.terminal import Attachment, Left, raw_mode
from ring3.tools.toolstack import Domain, Toolstack, load_images

_SERVICES_TIMEOUT_S: Final = 10.0
_HOST_RESERVE_MIB: Final = 512
_MONITOR_TIMEOUT_MS: Final = 2000
_SCRIPTS_TIMEOUT_S: Final = 60.0


def up(*, memory_mib: int | None, nr_pcpus: int | None, engine: str) -> int:
    """Starts hypervisor and domain 0 in the background; returns when they serve."""
    if memory_mib is None:
        memory_mib = default_memory_mib()
    else:
        launch.check_host_memory(memory_mib)
    place = rundir.default()
    place.create()
    options = MachineOptions(memory_mib, nr_pcpus or launch.pcpus_for(sys.maxsize), engine)
    machine = launch.start(place, options, in_background=True)
    machine.wait_until_ready()
    try:
        _wait_for_services(place)
    except BaseException:
        launch.stop_background(place)
        raise
    print(f"ring3: up with {options.memory_mib} MiB and {options.nr_pcpus} pCPUs; state in {place.path}")
    return 0


def default_memory_mib() -> int:
    """Returns what a machine gets if nobody says: what the host has left but a reserve. It costs only what is used."""
    available = launch.available_host_mib()
    return max(256, (available or 1024) - _HOST_RESERVE_MIB)


def _wait_for_services(place: rundir.RunDir) -> None:
    deadline = time.monotonic() + _SERVICES_TIMEOUT_S
    try:
        with XenstoreClient.connect(place.xenstore) as xenstore:
            xenstore.watch("/tool/consoled", "up")
            while xenstore.read_optional("/tool/consoled") is None:
                left = deadline - time.monotonic()
                if left <= 0 or xenstore.next_event(left) is None:
                    raise Error(f"the console daemon does not serve; {place.path} has its logs")
    except ConnectionLostError as error:
        raise Error(f"xenstored does not serve ({error}); {place.path} has its logs") from error


def down() -> int:
    """Ends the background machine and every domain on it."""
    place = rundir.default()
    if place.scripts.exists():
        # In a thread: nothing that hangs in domain 0 keeps the machine from its end.
        undoing = threading.Thread(target=_undo_scripts, args=(place,), daemon=True)
        undoing.start()
        undoing.join(_SCRIPTS_TIMEOUT_S)
    launch.stop_background(place)
    return 0


def _undo_scripts(place: rundir.RunDir) -> None:
    """Ends the domains with devices that scripts have made: what those are on the host must not outlive the machine."""
    from ring3.tools.devices import bus

    with contextlib.suppress(Error), Toolstack(place) as toolstack:
        for domid in bus.domains_with_scripts(toolstack.xenstore):
            toolstack.destroy(domid)


def create(config: DomainConfig) -> int:
    """Creates a domain in the background, with a process that carries out its reboot or removes it at its end."""
    place = rundir.default()
    with Toolstack(place) as toolstack:
        if config.name in store_nodes.names(toolstack.xenstore).values():
            raise ConfigError(f"a domain of the name {config.name} exists already", key="name")
        domain = toolstack.create(config, load_images(config))
        errors = place.path / "stderr.log"
        pid = launch.fork_background(lambda: _monitor(place, config, domain), "ring3-monitor", errors)
        toolstack.xenstore.write(store_nodes.monitor(domain.domid), str(pid))
        if ending_of(toolstack.conn, domain.domid, domain.handle) is Ending.DESTROYED:
            store_nodes.remove_nodes(toolstack.xenstore, domain.domid)  # the monitor was faster
    print(f"{domain.name}: domain {domain.domid}")
    return 0


def _monitor(place: rundir.RunDir, config: DomainConfig, domain: Domain) -> int:
    """Waits for a domain's end, and restarts or removes it. Ends with the domain, or with the hypervisor."""
    with contextlib.suppress(ConnectionLostError), Toolstack(place) as toolstack:
        toolstack.xenstore.watch("@releaseDomain", "end")
        while True:
            node = f"{store_nodes.home(domain.domid)}/domid"
            toolstack.xenstore.watch(node, "end")
            while (ending := ending_of(toolstack.conn, domain.domid, domain.handle)) is None:
                toolstack.xenstore.next_event()
            toolstack.xenstore.unwatch(node, "end")
            if ending is Ending.DESTROYED:
                return 0
            if ending in (Ending.CRASH, Ending.WATCHDOG, Ending.UNKNOWN):
                print(crash_report(toolstack.conn, domain.domid, ending), file=sys.stderr, flush=True)
            with contextlib.suppress(DomainNotFound, XenstoreRequestError):
                toolstack.destroy(domain.domid)
            if ending is not Ending.REBOOT or config.on_reboot is not OnReboot.RESTART:
                return 0
            domain = toolstack.create(config, load_images(config))
            toolstack.xenstore.write(store_nodes.monitor(domain.domid), str(os.getpid()))
    return 0


def destroy(name: str) -> int:
    """Destroys a domain at once; returns when the process that waited for its end is gone too."""
    with Toolstack(rundir.default()) as toolstack:
        domain = toolstack.find(name)
        if domain.domid == 0:
            raise ConfigError("domain 0 is the host; `ring3 down` ends it", key="domain")
        pid = toolstack.xenstore.read_optional(store_nodes.monitor(domain.domid))
        toolstack.destroy(domain.domid)
    if pid is not None and pid.isdigit():
        launch.wait_for_process(int(pid), _MONITOR_TIMEOUT_MS)
    return 0


def console(name: str, number: int, *, escape: bytes, only_log: bool) -> int:
    """Attaches to a domain's console; a key leaves it, and the domain goes on. Or prints its log."""
    place = rundir.default()
    with Toolstack(place) as toolstack:
        domain = _find_for_console(toolstack, name)
        if only_log:
            newest = place.console_log(domain.domid, number)
            for part in (console_log.older(newest), newest):
                with contextlib.suppress(FileNotFoundError):
                    sys.stdout.buffer.write(part.read_bytes())
            return 0
        if not toolstack.expects_console(domain, number):
            raise Error(f"{domain.name} has no console {number}")
        stream = ConsoleStream(
            place.console_stream(domain.domid, number), lambda: toolstack.expects_console(domain, number)
        )
    with stream, raw_mode() as is_terminal:
        left = Attachment(is_terminal=is_terminal, escape=escape).run(stream)
    return 0 if left in (Left.CONSOLE_ENDED, Left.BY_KEY) else 1


def console_tty(name: str, number: int) -> int:
    """Prints the device of a console's pseudo-terminal."""
    with Toolstack(rundir.default()) as toolstack:
        domain = _find_for_console(toolstack, name)
        home = store_nodes.home(domain.domid)
        node = f"{home}/console/tty" if number == 0 else f"{home}/device/console/{number}/tty"
        device = toolstack.xenstore.read_optional(node)
    if not device:
        raise Error(f"console {number} of {domain.name} has no pseudo-terminal")
    print(device)
    return 0


def _find_for_console(toolstack: Toolstack, name: str) -> Domain:
    domain = toolstack.find(name)
    if domain.domid == 0:
        raise ConfigError("domain 0 is the host, which has no console here", key="domain")
    return domain
