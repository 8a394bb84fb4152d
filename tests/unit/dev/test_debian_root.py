"""A root file system is packed from unpacked packages, with links into /usr, trimmed, and busybox for what it lacks."""

import subprocess
from pathlib import Path

import pytest

from ring3.dev import debian, debian_root, initramfs

pytestmark = pytest.mark.skipif(not debian.has_apt(), reason="no apt-get on this machine")

_CONTROL = "Package: sample\nVersion: 1\nArchitecture: amd64\nMaintainer: nobody\nDescription: sample\n"
_FILES = {
    "usr/bin/tool": "content",
    "usr/share/doc/sample/copyright": "words",
    "usr/bin/dash": "shell",
    "lib/x.so": "x",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    tree = tmp_path / "sample"
    for path, text in {"DEBIAN/control": _CONTROL, **_FILES}.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    file = tmp_path / "sample_1_amd64.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, file], check=True, capture_output=True)
    return file


def test_tree_is_merged_and_trimmed(package: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    debian_root._unpack_into(tree, [package])
    assert (tree / "bin/tool").read_text() == "content"
    assert (tree / "usr/lib/x.so").read_text() == "x"
    assert (tree / "bin/sh").read_text() == "shell"
    assert (tree / "lib").is_symlink()
    assert not (tree / "usr/share/doc").exists()


def test_image_is_one_archive_after_another(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_text("#!/bin/sh\necho busybox\necho tool\necho mount\n")
    busybox.chmod(0o755)
    tree = tmp_path / "debian-sample"
    debian_root._unpack_into(tree, [package])
    monkeypatch.setattr(initramfs, "find_busybox", lambda: busybox)
    monkeypatch.setattr(debian_root, "unpack", lambda *_: tree)
    image = debian_root.image(tmp_path, tmp_path / "image.cpio", ["sample"], {"bench/script": b"echo hello"})
    data = image.read_bytes()
    assert data.count(b"TRAILER!!!") == 3
    assert b"echo hello" in data
    assert b"usr/bin/mount\0" in data
    assert data.count(b"usr/bin/tool\0") == 1, "busybox does not replace what a package has"
