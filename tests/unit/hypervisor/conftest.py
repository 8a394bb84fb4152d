"""Cold hypercalls on the double of the core: real exception classes if the core is built, the double's otherwise."""

import importlib.util
from collections.abc import Iterator

import pytest

from support import fake_core

if importlib.util.find_spec("ring3._core") is None:
    fake_core.install()


class Caller:
    """A caller's memory: handles are offsets into it. Domain 0 unless said otherwise."""

    def __init__(self, *, domid: int = 0, nr_bytes: int = 1 << 16) -> None:
        self.domid = domid
        self.vcpu = 0
        self.is_privileged = domid == 0
        self.memory = bytearray(nr_bytes)

    def read(self, handle: int, nr_bytes: int) -> bytes:
        """Copies in."""
        self._check(handle, nr_bytes)
        return bytes(self.memory[handle : handle + nr_bytes])

    def write(self, handle: int, data: bytes) -> None:
        """Copies out."""
        self._check(handle, len(data))
        self.memory[handle : handle + len(data)] = data

    def _check(self, handle: int, nr_bytes: int) -> None:
        if handle < 16 or handle + nr_bytes > len(self.memory):
            raise fake_core.GuestFault


@pytest.fixture
def caller() -> Caller:
    """Domain 0."""
    return Caller()


@pytest.fixture
def guest_caller() -> Caller:
    """An unprivileged domain."""
    return Caller(domid=3)


@pytest.fixture
def xen() -> Iterator[object]:
    """A machine of 8 MiB with two pCPUs, its hypercalls registered."""
    from ring3.hypervisor import registry, table
    from ring3.hypervisor.state import Xen

    assert table
    core = fake_core.Hypervisor(nr_frames=2048, nr_pcpus=2)
    machine = Xen(core, 2_000_000)  # type: ignore[arg-type]
    registry.install(machine, core)  # type: ignore[arg-type]
    yield machine
    core.stop()
