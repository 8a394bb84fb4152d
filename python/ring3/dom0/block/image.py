"""What a disk's data is in: a file or block device of the host that the toolstack has opened and locked for us."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from ring3.abi.blkif import SECTOR_BYTES

# Source: Linux, linux/falloc.h, linux/fs.h.
_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2
_BLKGETSIZE64: Final = 0x80081272
_BLKDISCARD: Final = 0x1277
_BLKSSZGET: Final = 0x1268
_BLKPBSZGET: Final = 0x127B
_PATIENCE_NS: Final = 2_000_000
_AVOIDANCE: Final = 4
"""So many times as long as a write waited, others go to threads, which cost more but keep no other disk waiting."""
_AVOIDANCE_MAX_NS: Final = 1_000_000_000


class Image(Protocol):
    """A disk's data. Offsets and lengths in bytes, multiples of 512. What fails raises OSError."""

    def nr_sectors(self) -> int:
        """Returns its size; it may change."""

    def logical_sector_bytes(self) -> int:
        """Returns the size of the sectors that partition tables count in."""

    def physical_sector_bytes(self) -> int:
        """Returns the size that writes should be multiples of."""

    def can_discard(self) -> bool:
        """Returns whether discard() does anything."""

    def read_cached(self, buffers: Sequence[memoryview], offset: int, nr_bytes: int) -> bool:
        """Reads if that needs no waiting, since it costs less than a thread's wake-up; returns whether it did."""

    def write_quickly(self, buffers: Sequence[memoryview], offset: int, nr_bytes: int) -> bool:
        """Writes, if that has not taken long lately; returns whether it did."""

    def read(self, buffers: Sequence[memoryview], offset: int, nr_bytes: int) -> None:
        """Reads, however long it takes."""

    def write(self, buffers: Sequence[memoryview], offset: int, nr_bytes: int) -> None:
        """Writes, however long it takes."""

    def flush(self) -> None:
        """Returns when everything that was written is on stable storage."""

    def discard(self, offset: int, nr_bytes: int) -> None:
        """Lets go of contents."""

    def close(self) -> None:
        """Ends."""


class RawImage:
    """An open file or block device, byte for byte the disk."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._is_block = stat.S_ISBLK(os.fstat(fd).st_mode)
        self._avoid_until_ns = 0

    def nr_sectors(self) -> int:
        """Returns its size as it is now."""
        if self._is_block:
            [size] = struct.unpack("Q", fcntl.ioctl(self._fd, _BLKGETSIZE64, bytes(8)))
        else:
            size = os.fstat(self._fd).st_size
        return int(size) // SECTOR_BYTES

    def logical_sector_bytes(self) -> int:
        """Returns the device's figure; a file's is 512, as with Xen's loop devices."""
        return self._sector_bytes(_BLKSSZGET)

    def physical_sector_bytes(self) -> int:
        """As logical_sector_bytes()."""
        return self._sector_bytes(_BLKPBSZGET)

    def _sector_bytes(self, request: int) -> int:
        if not self._is_block:
            return SECTOR_BYTES
        [size] = struct.unpack("I", fcntl.ioctl(self._fd, request, bytes(4)))
        return max(SECTOR_BYTES, int(size))

    def can_discard(self) -> bool:
        """Files get holes; a device says when it is asked."""
        return True

    @property
    def is_cached(self) -> bool:
        """Whether its data moves through the host's page cache, as the quick path's does."""
        return True

    def fileno(self) -> int:
        """Returns our descriptor."""
        return self._fd

    def is_write_quick(self) -> bool:
        """Returns whether no write has had to wait lately."""
        return time.monotonic_ns() >= self._avoid_until_ns

    def avoid_writes(self, waited_ns: int) -> None:
        """Sends the writes of the next while elsewhere: one has had to wait for so long."""
        self._avoid_until_ns = time.monotonic_ns() + min(_AVOIDANCE * waited_ns, _AVOIDANCE_MAX_NS)

    def read_cached(self, buffers: Sequence[memoryview], offset: int, nr_bytes: int) -> bool:
        """Reads from the page cache."""
        try:
            return os.preadv(self._fd, buffers, offset, os.RWF_NOWAIT) == nr_bytes
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return False
            raise

    def write_quickly(self, buffers: Sequence[memoryview], offset: int, nr_bytes: int) -> bool:
        """Writes into the page cache. One that had to wait sends those of the next while elsewhere."""
        if not self.is_write_quick():
            return False
        start_ns = time.monotonic_ns()
        self.write(buffers, offset, nr_bytes)
        waited_ns = time.monotonic_ns() - start_ns
        if waited_ns > _PATIENCE_NS:
            self.avoid_writes(waited_ns)
        return True

    def read(self, buffers: Sequence[memoryview], offset: int, nr_bytes: int) -> None:
        """Reads; an image that has become shorter than the disk is an error beyond its end."""
        move_whole(lambda rest, at: os.preadv(self._fd, rest, at), buffers, offset, nr_bytes)

    def write(self, buffers: Sequence[memoryview], offset: int, nr_bytes: int) -> None:
        """Writes."""
        move_whole(lambda rest, at: os.pwritev(self._fd, rest, at), buffers, offset, nr_bytes)

    def flush(self) -> None:
        """Waits for the host's device."""
        os.fdatasync(self._fd)

    def discard(self, offset: int, nr_bytes: int) -> None:
        """Punches a hole, or asks the device."""
        if self._is_block:
            fcntl.ioctl(self._fd, _BLKDISCARD, struct.pack("QQ", offset, nr_bytes))
            return
        libc = ctypes.CDLL(None, use_errno=True)
        mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        if libc.fallocate(self._fd, mode, ctypes.c_long(offset), ctypes.c_long(nr_bytes)) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def close(self) -> None:
        """Closes our descriptor."""
        os.close(self._fd)


class EmptyImage:
    """A drive without a medium, which has no sectors. It connects: a kernel that starts would wait for it otherwise."""

    def nr_sectors(self) -> int:
        """Returns 0."""
        return 0

    def logical_sector_bytes(self) -> int:
        """As for a file."""
        return SECTOR_BYTES

    def physical_sector_bytes(self) -> int:
        """As for a file."""
        return SECTOR_BYTES

    def can_discard(self) -> bool:
        """There is nothing to discard."""
        return False

    def read_cached(self, buffers: Sequence[memoryview], offset: int, nr_bytes: int) -> bool:  # noqa: ARG002
        """Fails, as all transfers do."""
        raise OSError(errno.ENOMEDIUM, os.strerror(errno.ENOMEDIUM))

    write_quickly = read_cached

    def read(self, buffers: Sequence[memoryview], offset: int, nr_bytes: int) -> None:
        """Fails."""
        self.read_cached(buffers, offset, nr_bytes)

    write = read

    def flush(self) -> None:
        """Has nothing to do."""

    def discard(self, offset: int, nr_bytes: int) -> None:
        """Fails."""
        self.read_cached((), offset, nr_bytes)

    def close(self) -> None:
        """Has nothing to do."""


def move_whole(
    move: Callable[[Sequence[memoryview], int], int], buffers: Sequence[memoryview], offset: int, nr_bytes: int
) -> None:
    """Repeats a vectored call until all is moved. Raises OSError, EIO where the image ends."""
    done = move(buffers, offset)
    if done == nr_bytes:
        return
    total = done
    while total < nr_bytes:
        if done <= 0:
            raise OSError(errno.EIO, "the image ends here")
        rest, skip = [], total
        for buffer in buffers:
            if skip >= len(buffer):
                skip -= len(buffer)
            else:
                rest.append(buffer[skip:])
                skip = 0
        done = move(rest, offset + total)
        total += done
