"""`ring3 image debian`: what it says where it cannot make an image."""

import os
import pwd
import shutil
from pathlib import Path

import pytest

from ring3.errors import ConfigError, Error
from ring3.tools.images import debian
from ring3.tools.images.debian import DebianOptions


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """The programs that an ordinary user has."""
    found = {"mmdebstrap", "mke2fs", "tar", "fakeroot"}
    monkeypatch.setattr(shutil, "which", lambda name, path=None: f"/usr/bin/{name}" if name in found else None)  # noqa: ARG005
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: pwd.struct_passwd(("me", "x", 1000, 1000, "", "/", "/bin/sh")))
    monkeypatch.setattr(debian, "_SUBORDINATES", (tmp_path / "subuid", tmp_path / "subgid"))
    monkeypatch.setenv("RING3_IMAGE_DIR", str(tmp_path))
    return found


def test_missing_programs_are_named(programs: set[str]) -> None:
    programs -= {"mmdebstrap", "fakeroot"}
    with pytest.raises(Error, match="needs mmdebstrap, fakeroot"):
        debian.make("box", DebianOptions())


def test_user_without_a_way_to_install_is_told_which_there_are(programs: set[str], tmp_path: Path) -> None:
    with pytest.raises(Error, match="without root an image needs fakechroot, or newuidmap"):
        debian.make("box", DebianOptions())
    programs.add("newuidmap")
    (tmp_path / "subuid").write_text("other:100000:65536\n")
    (tmp_path / "subgid").write_text("me:100000:65536\n")
    with pytest.raises(Error, match="subuid"):
        debian.make("box", DebianOptions())


def test_reason_of_apt_is_told() -> None:
    said = ("I: running", "Err:2 http://x nosuch Release", "E: no Release file.", "E: apt-get update failed")
    text = "\n".join((*said, "E: mmdebstrap failed to run"))
    assert debian._reason(text) == "no Release file."
    assert debian._reason("tar: disk full\n") == "tar: disk full"


@pytest.mark.parametrize("name", ["fakechroot", "newuidmap"])
def test_either_way_will_do(programs: set[str], tmp_path: Path, name: str) -> None:
    programs.add(name)
    for path in ("subuid", "subgid"):
        (tmp_path / path).write_text("1000:100000:65536\n")
    with pytest.raises(ConfigError, match="no suite or package"):  # which is looked at next
        debian.make("box", DebianOptions(suite="no such"))
