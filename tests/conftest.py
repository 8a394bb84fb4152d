"""Fixtures for every test, and the rule that a test which needs more than this machine has says so and is skipped."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from ring3.dev import initramfs, kernel
from support.command import Ring3, ring3_path

REPOSITORY = Path(__file__).parent.parent

# A shared machine makes single examples slow now and then; `make fuzz` looks longer.
settings.register_profile("default", deadline=None)
settings.register_profile("fuzz", deadline=None, max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips guest tests where the command is not built, and what takes minutes unless RING3_SLOW_TESTS is set."""
    no_command = pytest.mark.skip(reason="the ring3 command is not installed beside this Python: make build")
    takes_long = pytest.mark.skip(reason="takes minutes: RING3_SLOW_TESTS=1 runs it")
    is_built = ring3_path() is not None
    for item in items:
        if "guest" in item.keywords and not is_built:
            item.add_marker(no_command)
        if "slow" in item.keywords and not os.environ.get("RING3_SLOW_TESTS"):
            item.add_marker(takes_long)


@pytest.fixture(scope="session")
def guest_cache() -> Path:
    """Where downloaded kernels and packed initramfs images are kept."""
    path = REPOSITORY / ".cache" / "guest"
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def cloud_kernel(guest_cache: Path) -> Path:
    """Debian's cloud kernel."""
    return _artefact(lambda: kernel.fetch(guest_cache, "cloud"))


@pytest.fixture(scope="session")
def main_kernel(guest_cache: Path) -> Path:
    """Debian's general kernel."""
    return _artefact(lambda: kernel.fetch(guest_cache, "main"))


@pytest.fixture(scope="session")
def busybox_image(guest_cache: Path) -> Path:
    """The plain initramfs: a shell, or the script of `ring3.run=`."""
    return _artefact(lambda: initramfs.build(guest_cache))


@pytest.fixture
def ring3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring3]:
    """The command, with a state directory of its own; a background hypervisor left there is stopped."""
    run_dir = tmp_path_factory.mktemp("run")
    run_dir.chmod(0o700)
    command = Ring3(run_dir)
    yield command
    if (run_dir / "ring3d.pid").exists():
        command("down", timeout_s=30)
    shutil.rmtree(run_dir, ignore_errors=True)


def _artefact(make):  # type: ignore[no-untyped-def]
    try:
        return make()
    except (initramfs.ArtefactError, OSError) as error:
        pytest.skip(f"{error} ({sys.platform})")
