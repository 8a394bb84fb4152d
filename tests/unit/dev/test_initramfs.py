"""The busybox image: what is in it, and that it is packed once for the same content."""

import gzip
from pathlib import Path

import pytest

from ring3.dev import initramfs


@pytest.fixture
def busybox() -> Path:
    try:
        return initramfs.find_busybox()
    except initramfs.ArtefactError as error:
        pytest.skip(str(error))


def test_every_parent_directory_stands_before_what_is_in_it(busybox: Path) -> None:
    paths = [entry.path for entry in initramfs.entries(busybox, {"a/b/c": b"x"})]
    for index, path in enumerate(paths):
        for parent in Path(path).parents:
            assert str(parent) == "." or str(parent) in paths[:index]


def test_extra_files_are_in_the_image(busybox: Path, tmp_path: Path) -> None:
    assert busybox
    image = initramfs.build(tmp_path, extra={"test/script": b"echo unmistakable"})
    assert b"echo unmistakable" in gzip.decompress(image.read_bytes())


def test_same_content_is_packed_once(busybox: Path, tmp_path: Path) -> None:
    assert busybox
    first = initramfs.build(tmp_path)
    packed_at = first.stat().st_mtime_ns
    assert initramfs.build(tmp_path) == first
    assert first.stat().st_mtime_ns == packed_at
    assert initramfs.build(tmp_path, extra={"x": b""}) != first
