"""A double of the hypervisor, and kernels that must not touch this user's cache."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from unit.libs.fake_hypervisor import FakeHypervisor


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel cache of the test's own."""
    path = tmp_path / "cache"
    monkeypatch.setenv("RING3_KERNEL_CACHE", str(path))
    return path


@pytest.fixture(params=[False, True], ids=["consecutive", "scattered"])
def hypervisor(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[FakeHypervisor]:
    """A double that hands out frames in order, or none beside another."""
    fake = FakeHypervisor(tmp_path / "control", nr_frames=1 << 17, fragment=request.param)
    yield fake
    fake.close()
