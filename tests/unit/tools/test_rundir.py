"""The state directory: whose it is, and who is running there."""

import os
import stat
from pathlib import Path

import pytest

from ring3.errors import ConfigError
from ring3.tools import rundir
from ring3.tools.rundir import RunDir


@pytest.fixture
def place(tmp_path: Path) -> RunDir:
    place = RunDir(tmp_path / "r")
    place.create()
    return place


def test_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setenv("RING3_RUN_DIR", "/somewhere/else")
    assert rundir.default().path == Path("/somewhere/else")
    monkeypatch.delenv("RING3_RUN_DIR")
    assert rundir.default().path == Path("/run/user/7/ring3")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert rundir.default().path == Path(f"/tmp/ring3-{os.getuid()}")


def test_it_is_made_for_its_user_alone(place: RunDir) -> None:
    assert stat.S_IMODE(place.path.stat().st_mode) == 0o700
    place.create()


def test_directories_that_others_can_write_are_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    (tmp_path / "file").write_text("")
    for name in ("open", "link", "file", "file/below"):
        with pytest.raises(ConfigError, match=name):
            RunDir(tmp_path / name).create()


def test_too_long_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long"):
        RunDir(tmp_path / ("x" * 100)).create()


def test_lock_says_whether_one_is_running(place: RunDir) -> None:
    assert not place.is_running()
    fd = place.take_lock()
    copy = os.dup(fd)
    assert place.is_running()
    with pytest.raises(ConfigError, match="already"):
        place.take_lock()
    os.close(fd)
    assert place.is_running(), "ring3d has its copy still"
    os.close(copy)
    assert not place.is_running()


def test_leftovers_of_a_dead_machine_go(place: RunDir) -> None:
    place.console_dir.mkdir()
    for path in (place.control, place.xenstore, place.pid_file, place.console(3)):
        path.write_text("")
    kept = place.console_dir / "3.log"
    kept.write_text("")
    place.remove_sockets()
    assert sorted(place.path.rglob("*")) == [place.console_dir, kept]


def test_private_directories_of_killed_commands_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RING3_RUN_DIR", str(tmp_path / "r"))
    rundir.default().create()
    dead = tmp_path / "r" / "run-4194400"  # above the largest pid
    alive = tmp_path / "r" / f"run-{os.getppid()}"
    dead.mkdir()
    alive.mkdir()
    mine = rundir.private()
    assert mine.path.name == f"run-{os.getpid()}"
    assert not dead.exists()
    assert alive.exists()
