"""Images: what moves past the page cache, what cannot, and where an image ends."""

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ring3.dom0.block.direct import DirectImage
from ring3.dom0.block.image import RawImage
from support import disks

SIZE = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of which nothing is in the page cache."""
    made = tmp_path / "image"
    made.write_bytes(bytes(range(256)) * (SIZE // 256))
    drop(made)
    return made


def drop(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@pytest.fixture
def direct(path: Path) -> Iterator[DirectImage]:
    try:
        direct_fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError:
        pytest.skip("no O_DIRECT here")
    image = DirectImage(os.open(path, os.O_RDWR), direct_fd)
    yield image
    image.close()


def memory() -> memoryview:
    """Pages, as a guest's are."""
    return memoryview(mmap.mmap(-1, 1 << 16))


def test_direct_transfers_leave_nothing_in_the_page_cache(path: Path, direct: DirectImage) -> None:
    page = memory()
    direct.read([page[:4096], page[8192:12288]], 4096, 8192)
    assert bytes(page[:4096]) == bytes(page[8192:12288]) == bytes(range(256)) * 16
    assert disks.nr_cached_pages(path) == 0
    page[:4096] = b"\x11" * 4096
    direct.write([page[:4096]], 65536, 4096)
    assert disks.nr_cached_pages(path) == 0
    direct.flush()
    assert path.read_bytes()[65535:69633] == b"\xff" + b"\x11" * 4096 + b"\0"
    assert not direct.read_cached([page[:512]], 0, 512)
    assert not direct.write_quickly([page[:512]], 0, 512)


def test_what_is_not_aligned_goes_through_the_page_cache(direct: DirectImage) -> None:
    page = memory()
    direct.read([page[1:513]], 512, 512)
    assert bytes(page[1:513]) == bytes(range(256)) * 2
    page[3:515] = b"\x22" * 512
    direct.write([page[3:515]], 512, 512)
    direct.read([page[4096:8192]], 0, 4096)
    assert bytes(page[4096 + 512 : 4096 + 1024]) == b"\x22" * 512, "a direct read sees it"
    page[4096:8192] = b"\x33" * 4096
    direct.write([page[4096:8192]], 0, 4096)
    direct.read([page[1:513]], 512, 512)
    assert bytes(page[1:513]) == b"\x33" * 512, "and the other way round"
    assert direct.nr_sectors() == SIZE // 512


@pytest.mark.parametrize("is_direct", [False, True])
def test_beyond_the_end_is_an_error(path: Path, is_direct: bool, direct: DirectImage) -> None:
    image = direct if is_direct else RawImage(os.open(path, os.O_RDWR))
    os.truncate(path, SIZE // 2)
    page = memory()
    with pytest.raises(OSError) as caught:
        image.read([page[:8192]], SIZE // 2 - 4096, 8192)
    assert caught.value.errno == errno.EIO
    assert image.nr_sectors() == SIZE // 1024
    if not is_direct:
        image.close()


def test_full_host_is_reported_for_direct_writes(direct: DirectImage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(OSError) as caught:
        direct.write([memory()[:4096]], 0, 4096)
    assert caught.value.errno == errno.ENOSPC
