"""The archive that Linux unpacks: read back by a reader of our own, and by the cpio tool where there is one."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from ring3.dev import cpio

ENTRIES = [
    cpio.directory("bin"),
    cpio.regular("bin/a", b"content", 0o755),
    cpio.regular("empty", b""),
    cpio.symlink("bin/b", "a"),
    cpio.character_device("console", 5, 1),
]


def read(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Returns path to (mode, data)."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_bytes = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_bytes - 1].decode()
        data_at = (at + 110 + name_bytes + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[data_at : data_at + size])
        at = (data_at + size + 3) & ~3


def test_members_come_back_with_mode_and_data() -> None:
    found = read(cpio.pack(ENTRIES))
    assert list(found) == ["bin", "bin/a", "empty", "bin/b", "console"]
    assert found["bin/a"] == (stat.S_IFREG | 0o755, b"content")
    assert found["bin/b"] == (stat.S_IFLNK | 0o777, b"a")
    assert stat.S_ISCHR(found["console"][0])


def test_same_content_gives_same_bytes() -> None:
    assert cpio.pack(ENTRIES) == cpio.pack(list(ENTRIES))


def test_archive_is_a_multiple_of_512_bytes() -> None:
    assert len(cpio.pack(ENTRIES)) % 512 == 0


def test_the_cpio_tool_reads_it(tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        pytest.skip("no cpio tool")
    archive = tmp_path / "archive"
    archive.write_bytes(cpio.pack(ENTRIES))
    with archive.open("rb") as stream:
        done = subprocess.run(["cpio", "-itv", "--quiet"], stdin=stream, capture_output=True, text=True, check=True)
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["bin", "bin/a", "empty", "a", "console"]
    assert "5,   1" in done.stdout
