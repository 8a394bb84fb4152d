"""A connection to a double of the hypervisor."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ring3.libs.connection import Connection
from unit.libs.fake_hypervisor import FakeHypervisor


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[FakeHypervisor]:
    """A double that serves one connection."""
    fake = FakeHypervisor(tmp_path / "control", nr_frames=1 << 16)
    yield fake
    fake.close()


@pytest.fixture
def conn(hypervisor: FakeHypervisor) -> Iterator[Connection]:
    """A connection to it."""
    with Connection.connect(hypervisor.path) as connection:
        yield connection
