"""The life of a domain: create, find, list, destroy. By hypercalls and xenstore alone, in the order that xl keeps."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from ring3.errors import (
    ConfigError,
    ConnectionLostError,
    DomainError,
    DomainNotFound,
    Error,
    HypercallError,
    XenstoreRequestError,
)
from ring3.libs import domctl, memory, sysctl
from ring3.libs.closeable import Closeable
from ring3.libs.connection import Connection
from ring3.libs.evtchn import EventChannels
from ring3.libs.xenstore import XenstoreClient
from ring3.tools import store_nodes
from ring3.tools.ending import Ending, ending_of
from ring3.tools.services import Services

if TYPE_CHECKING:
    from ring3.builder.kernel import Kernel
    from ring3.builder.pv import Ramdisk
    from ring3.tools.config import DomainConfig
    from ring3.tools.rundir import RunDir

DOM0_NAME: Final = "Domain-0"
_DETACH_TIMEOUT_S: Final = 2.0
_DETACH_POLL_S: Final = 0.002


class Images(NamedTuple):
    """A domain's files, read and checked: they may serve several starts."""

    kernel: Kernel
    ramdisk: Ramdisk | None


class Domain(NamedTuple):
    """A domain that has been created. `handle` tells it from a later one of the same domid."""

    domid: int
    name: str
    handle: bytes


class Listed(NamedTuple):
    """A line of `ring3 list`."""

    name: str
    info: domctl.DomainInfo


def uuid_text(handle: bytes) -> str:
    """Returns a domain handle as Xen's tools write it."""
    text = handle.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def load_images(config: DomainConfig) -> Images:
    """Reads kernel and ramdisk and checks that they fit; needs no hypervisor. Raises ConfigError, BuildError."""
    from ring3.builder import kernel, pv

    images = Images(kernel.load(config.kernel), pv.load_ramdisk(config.ramdisk) if config.ramdisk else None)
    pv.check(images.kernel, images.ramdisk, memory_mib=config.memory_mib, cmdline=config.cmdline)
    return images


class Toolstack(Closeable):
    """A connection to hypervisor and xenstored. A context manager that closes both."""

    def __init__(self, rundir: RunDir) -> None:
        """Connects. Raises ConnectionLostError."""
        self.rundir = rundir
        try:
            self.conn = Connection.connect(rundir.control)
        except ConnectionLostError as error:
            if rundir.is_running():
                raise
            raise Error(f"no hypervisor is running in {rundir.path} (`ring3 up` starts one)") from error
        try:
            self.xenstore = XenstoreClient.connect(rundir.xenstore)
        except BaseException:
            self.conn.close()
            raise
        self._events: EventChannels | None = None
        self.services = Services(rundir.requests)

    @property
    def events(self) -> EventChannels:
        """This process's event channels."""
        if self._events is None:
            self._events = EventChannels(self.conn)
        return self._events

    def create(self, config: DomainConfig, images: Images) -> Domain:
        """Creates, builds and starts a domain. One that fails on the way is destroyed again."""
        from ring3.builder import pv
        from ring3.tools.config import TscMode

        handle = os.urandom(16)
        domid = domctl.createdomain(
            self.conn,
            max_vcpus=config.nr_vcpus_max,
            handle=handle,
            # xl gives PV domains none; then Linux reads a port 100,000 times before it believes that nothing answers
            has_pit=True,
        )
        try:
            domctl.max_vcpus(self.conn, domid, config.nr_vcpus_max)
            domctl.max_mem(self.conn, domid, config.memory_mib << 10)
            memory.set_memory_map(self.conn, domid, config.memory_mib << 20)
            domctl.settscinfo(self.conn, domid, list(TscMode).index(config.tsc_mode))
            if config.cpuid:
                from ring3.tools import cpuid

                cpuid.apply(self.conn, domid, config.cpuid)
            with pv.build(
                self.conn,
                domid,
                images.kernel,
                memory_mib=config.memory_mib,
                store_evtchn=self.events.alloc_unbound(0, domid=domid),
                console_evtchn=self.events.alloc_unbound(0, domid=domid),
                ramdisk=images.ramdisk,
                cmdline=config.cmdline,
            ) as built:
                store_nodes.write_nodes(self.xenstore, config, built, uuid_text(handle))
                if config.channels:
                    from ring3.tools import channels

                    channels.make_links(self.rundir, domid, config.channels)
                self.xenstore.introduce(domid, built.store_mfn, built.store_evtchn)
            if config.devices:
                from ring3.tools.devices import bus

                for device in config.devices:
                    bus.attach(self.xenstore, self.services, domid, device)
            domctl.unpausedomain(self.conn, domid)
        except BaseException:
            with contextlib.suppress(HypercallError, DomainError, XenstoreRequestError, ConnectionLostError):
                self.destroy(domid)
            raise
        return Domain(domid, config.name, handle)

    def destroy(self, domid: int) -> None:
        """Destroys a domain: domain 0 lets go of it first, so that nobody writes to frames that are no longer its own.

        Raises DomainNotFound.
        """
        from ring3.tools import channels
        from ring3.tools.devices import bus

        domctl.getdomaininfo(self.conn, domid)
        channels.remove_links(self.xenstore, self.rundir, domid)
        with contextlib.suppress(HypercallError):
            domctl.pausedomain(self.conn, domid)
        try:
            self.xenstore.release(domid)
        except XenstoreRequestError as error:
            if error.errno_name != "ENOENT":
                raise
        with contextlib.suppress(ConnectionLostError):
            bus.end_all(self.xenstore, self.services, domid)
        self._wait_for_console(domid)
        with contextlib.suppress(ConnectionLostError):  # a foreground machine ends with its guest, answered or not
            domctl.destroydomain(self.conn, domid)
            store_nodes.remove_nodes(self.xenstore, domid)

    def _wait_for_console(self, domid: int) -> None:
        """The console daemon removes the socket when it has unmapped the ring."""
        deadline = time.monotonic() + _DETACH_TIMEOUT_S
        while self.rundir.console(domid).exists() and time.monotonic() < deadline:
            time.sleep(_DETACH_POLL_S)

    def expects_console(self, domain: Domain, number: int) -> bool:
        """Returns whether the console daemon serves this console of a domain, or is going to."""
        if ending_of(self.conn, domain.domid, domain.handle) is Ending.DESTROYED:
            return False
        if number == 0:
            return True
        from ring3.tools import channels

        return channels.is_there(self.xenstore, domain.domid, number)

    def domains(self) -> list[Listed]:
        """Returns every domain, domain 0 first."""
        names = store_nodes.names(self.xenstore) | {0: DOM0_NAME}
        return [Listed(names.get(info.domid, "(null)"), info) for info in sysctl.getdomaininfolist(self.conn)]

    def find(self, name_or_domid: str) -> Domain:
        """Returns the domain of a name or number. Raises DomainNotFound."""
        for listed in self.domains():
            if name_or_domid in (listed.name, str(listed.info.domid)):
                return Domain(listed.info.domid, listed.name, listed.info.handle)
        raise DomainNotFound(name_or_domid)

    def find_guest(self, name_or_domid: str, what: str) -> Domain:
        """Returns a domain that may be given `what` ("disks"). Raises DomainNotFound, ConfigError for domain 0."""
        domain = self.find(name_or_domid)
        if domain.domid == 0:
            raise ConfigError(f"domain 0 has the host's {what}", key="domain")
        return domain

    def close(self) -> None:
        """Closes both connections."""
        if self._events is not None:
            self._events.release()
        self.services.close()
        self.xenstore.close()
        self.conn.close()
