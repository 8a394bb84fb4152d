"""The cache of decompressed kernels."""

import os
import time
from pathlib import Path

import pytest

from ring3.builder import cache, kernel, payload
from unit.builder.images import compressed_kernel, elf


@pytest.fixture
def image(tmp_path: Path) -> Path:
    packed = compressed_kernel("xz", elf())
    assert packed is not None
    path = tmp_path / "vmlinuz"
    path.write_bytes(packed)
    return path


def no_decompression(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise AssertionError("decompressed again")

    monkeypatch.setattr(payload, "decompress", refuse)


def test_the_second_start_decompresses_nothing(
    image: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kernel.load(image)
    no_decompression(monkeypatch)
    assert bytes(kernel.load(image).elf.data) == bytes(first.elf.data)
    [kept] = private_cache.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert private_cache.stat().st_mode & 0o777 == 0o700


def test_it_can_be_turned_off(image: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RING3_KERNEL_CACHE", "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    kernel.load(image)
    assert not (tmp_path / "xdg").exists()
    monkeypatch.setenv("RING3_KERNEL_CACHE", str(tmp_path / "other"))
    kernel.load(image, use_cache=False)
    assert not (tmp_path / "other").exists()


def test_its_usual_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RING3_KERNEL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.directory() == tmp_path / "ring3" / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/nobody")
    assert cache.directory() == Path("/home/nobody/.cache/ring3/kernels")


def test_it_stays_small_and_keeps_what_is_used(private_cache: Path) -> None:
    for index in range(cache.MAX_FILES):
        cache.store(f"{index}", b"kernel%d" % index)
        os.utime(private_cache / f"{index}", (index, index))
    assert cache.load("0", 7) is not None
    cache.store("new", b"x")
    assert {path.name for path in private_cache.iterdir()} == {"0", "2", "3", "new"}


def test_what_others_could_have_written_is_not_used(image: Path, private_cache: Path) -> None:
    kernel.load(image)
    [kept] = private_cache.iterdir()
    size = kept.stat().st_size
    assert cache.load(kept.name, size) is not None
    kept.chmod(0o666)
    assert cache.load(kept.name, size) is None
    kept.chmod(0o600)
    private_cache.chmod(0o777)
    assert cache.load(kept.name, size) is None
    private_cache.chmod(0o700)
    target = kept.rename(private_cache / "elsewhere")
    kept.symlink_to(target)
    assert cache.load(kept.name, size) is None


def test_a_file_of_the_wrong_size_is_decompressed_again(image: Path, private_cache: Path) -> None:
    kernel.load(image)
    [kept] = private_cache.iterdir()
    kept.write_bytes(b"short")
    assert bytes(kernel.load(image).elf.data) == elf()


def test_a_place_that_cannot_be_written_is_no_error(
    image: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("RING3_KERNEL_CACHE", str(tmp_path / "file" / "cache"))
    assert bytes(kernel.load(image).elf.data) == elf()


def test_a_file_that_has_not_changed_is_not_read_again(
    image: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 3_600_000_000_000)
    data, status = kernel.map_file(image, "kernel")
    key = cache.key_of(data, status)
    assert [path.read_text() for path in private_cache.iterdir()] == [key]
    assert cache.key_of(memoryview(b"not looked at"), status) == key
    image.write_bytes(bytes(data)[:-1] + b"\xff")
    assert cache.key_of(*kernel.map_file(image, "kernel")) != key


def test_a_file_that_changed_just_now_is_read(image: Path) -> None:
    data, status = kernel.map_file(image, "kernel")
    key = cache.key_of(data, status)
    assert cache.key_of(memoryview(b"other"), status) != key
