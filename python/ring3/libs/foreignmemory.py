"""Memory of other domains. Domain 0 owns the machine: frame n is the page at offset n << 12 of the machine memfd.

Copies go past the hypervisor. So writing is for domains that do not run (unpausing forgets what was translated of their
code), and for frames that nobody else uses meanwhile; `foreignmapping` is for the rest.
"""

import mmap
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence

from ring3.abi.xen import PAGE_SHIFT, PAGE_SIZE
from ring3.libs.connection import BytesLike


class ForeignMemory:
    """Copies frames. `memfd` stays the caller's (usually `Connection.memfd`)."""

    def __init__(self, memfd: int, nr_frames: int) -> None:
        self._memfd = memfd
        self.nr_frames = nr_frames

    def read(self, mfn: int, offset: int = 0, nr_bytes: int = PAGE_SIZE) -> bytes:
        """Copies bytes out of consecutive frames."""
        self._check(mfn, offset + nr_bytes + PAGE_SIZE - 1 >> PAGE_SHIFT)
        return os.pread(self._memfd, nr_bytes, (mfn << PAGE_SHIFT) + offset)

    def write(self, mfn: int, data: BytesLike, offset: int = 0) -> None:
        """Copies bytes into consecutive frames."""
        view = memoryview(data).cast("B")
        self._check(mfn, offset + view.nbytes + PAGE_SIZE - 1 >> PAGE_SHIFT)
        position = (mfn << PAGE_SHIFT) + offset
        while view.nbytes:
            written = os.pwrite(self._memfd, view, position)
            view = view[written:]
            position += written

    def write_scattered(self, mfn: int, data: bytes, offsets: Iterable[int]) -> None:
        """Copies the same bytes to several places of a frame."""
        self._check(mfn, 1)
        with mmap.mmap(self._memfd, PAGE_SIZE, offset=mfn << PAGE_SHIFT) as frame:
            for offset in offsets:
                frame[offset : offset + len(data)] = data

    def write_frames(self, mfns: Sequence[int], data: BytesLike) -> None:
        """Copies bytes into listed frames, from the start of the first; runs of consecutive frames go as one."""
        view = memoryview(data).cast("B")
        if view.nbytes > len(mfns) << PAGE_SHIFT:
            raise ValueError(f"{view.nbytes:#x} bytes do not fit {len(mfns)} frames")
        for index, length in runs(mfns[: view.nbytes + PAGE_SIZE - 1 >> PAGE_SHIFT]):
            self.write(mfns[index], view[index << PAGE_SHIFT : index + length << PAGE_SHIFT])

    def _check(self, mfn: int, nr_frames: int) -> None:
        if mfn < 0 or nr_frames < 1 or mfn + nr_frames > self.nr_frames:
            raise ValueError(f"frames {mfn:#x} + {nr_frames:#x} are outside the machine ({self.nr_frames:#x} frames)")


def runs(mfns: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields (index, length) of each run of consecutive MFNs, in order; gallops, so that long runs are quick."""
    frames = mfns if isinstance(mfns, array) else array("Q", mfns)
    index, total = 0, len(frames)
    while index < total:
        first, length, step = frames[index], 1, 1
        while step:
            end = min(index + length + step, total)
            start = index + length
            if start < end and frames[start:end] == array("Q", range(first + length, first + end - index)):
                length = end - index
                step *= 2
            else:
                step //= 2
        yield index, length
        index += length
