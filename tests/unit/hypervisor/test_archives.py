"""The files of kept translations."""

import os
from pathlib import Path

import pytest

from ring3.hypervisor import archives


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "translations"
    monkeypatch.setenv("RING3_TRANSLATIONS", str(place))
    return place


def _close(fds: list[int]) -> int:
    for fd in fds:
        os.close(fd)
    return len(fds)


def test_files_are_made_private_and_found_again(folder: Path) -> None:
    assert _close(archives.open_files()) == archives.NR_FILES
    names = sorted(path.name for path in folder.iterdir())
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())
    assert _close(archives.open_files()) == archives.NR_FILES
    assert sorted(path.name for path in folder.iterdir()) == names


def test_old_builds_files_go_in_the_end(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    for number in range(archives.MOST_FILES):
        path = folder / f"{number:016x}-0"
        path.write_bytes(b"old")
        os.utime(path, (number, number))
    assert _close(archives.open_files()) == archives.NR_FILES
    left = {path.name for path in folder.iterdir()}
    assert len(left) <= archives.MOST_FILES
    assert f"{0:016x}-0" not in left
    assert f"{archives.MOST_FILES - 1:016x}-0" in left


def test_what_others_can_write_to_is_not_used(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.mkdir(mode=0o700)
    folder.chmod(0o777)
    assert archives.open_files() == []
    assert "not ours alone" in caplog.text


def test_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    _close(archives.open_files())
    name = next(folder.iterdir())
    name.unlink()
    (tmp_path / "elsewhere").write_bytes(b"")
    name.symlink_to(tmp_path / "elsewhere")
    assert archives.open_files() == []


def test_they_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RING3_TRANSLATIONS", "0")
    assert archives.open_files() == []
