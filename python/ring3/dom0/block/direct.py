"""Images that are read and written past the host's page cache (`direct-io-safe`), where the host can do that."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from ring3.dom0.block.image import RawImage, move_whole


class DirectImage(RawImage):
    """A file or block device with a second descriptor, opened with O_DIRECT, of the same.

    What the host cannot move directly, since its device has larger sectors or addresses must be aligned better, goes
    through the page cache; Linux keeps the two the same.
    """

    def __init__(self, fd: int, direct_fd: int) -> None:
        super().__init__(fd)
        self._direct_fd = direct_fd

    @property
    def is_cached(self) -> bool:
        """Each transfer waits for the device."""
        return False

    def read_cached(self, buffers: Sequence[memoryview], offset: int, nr_bytes: int) -> bool:  # noqa: ARG002
        """Nothing is there."""
        return False

    def write_quickly(self, buffers: Sequence[memoryview], offset: int, nr_bytes: int) -> bool:  # noqa: ARG002
        """No write is quick."""
        return False

    def read(self, buffers: Sequence[memoryview], offset: int, nr_bytes: int) -> None:
        """Reads from the device."""
        if not self._move(os.preadv, buffers, offset, nr_bytes):
            super().read(buffers, offset, nr_bytes)

    def write(self, buffers: Sequence[memoryview], offset: int, nr_bytes: int) -> None:
        """Writes to the device, which may have a cache of its own: that is for a flush."""
        if not self._move(os.pwritev, buffers, offset, nr_bytes):
            super().write(buffers, offset, nr_bytes)

    def _move(
        self,
        vectored: Callable[[int, Sequence[memoryview], int], int],
        buffers: Sequence[memoryview],
        offset: int,
        nr_bytes: int,
    ) -> bool:
        """Returns False if the host does not move these bytes directly. Raises OSError for what else fails."""
        try:
            move_whole(lambda rest, at: vectored(self._direct_fd, rest, at), buffers, offset, nr_bytes)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
        return True

    def close(self) -> None:
        """Closes both descriptors."""
        os.close(self._direct_fd)
        super().close()
