"""Memory of other domains. Domain 0 owns the machine: frame n is the page at offset n << 12 of the machine memfd."""

import contextlib
import mmap
import os
from array import array
from collections.abc import Iterator, Sequence

from ring3.abi.xen import PAGE_SHIFT, PAGE_SIZE
from ring3.libs.closeable import Closeable
from ring3.libs.connection import BytesLike


class ForeignMapping(Closeable):
    """A mapping of consecutive frames until close(). The guest may write to them at any time: copy, then check."""

    def __init__(self, memfd: int, mfn: int, nr_frames: int, *, writable: bool) -> None:
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(memfd, nr_frames << PAGE_SHIFT, mmap.MAP_SHARED, prot, offset=mfn << PAGE_SHIFT)
        self.mfn = mfn
        self.view = memoryview(self._map)

    def close(self) -> None:
        """Unmaps the frames. Slices of `view` that are still alive keep the mapping until they go."""
        self.view.release()
        with contextlib.suppress(BufferError):
            self._map.close()


class ForeignMemory:
    """Maps and copies frames. `memfd` stays the caller's (usually `Connection.memfd`)."""

    def __init__(self, memfd: int, nr_frames: int) -> None:
        self._memfd = memfd
        self.nr_frames = nr_frames

    def map(self, mfn: int, nr_frames: int = 1, *, writable: bool = True) -> ForeignMapping:
        """Maps consecutive frames, for memory that stays shared (rings). Raises ValueError if outside the machine."""
        self._check(mfn, nr_frames)
        return ForeignMapping(self._memfd, mfn, nr_frames, writable=writable)

    def read(self, mfn: int, offset: int = 0, nr_bytes: int = PAGE_SIZE) -> bytes:
        """Copies bytes out of consecutive frames."""
        self._check(mfn, offset + nr_bytes + PAGE_SIZE - 1 >> PAGE_SHIFT)
        return os.pread(self._memfd, nr_bytes, (mfn << PAGE_SHIFT) + offset)

    def write(self, mfn: int, data: BytesLike, offset: int = 0) -> None:
        """Copies bytes into consecutive frames; cheaper than a mapping for what is written once."""
        view = memoryview(data).cast("B")
        self._check(mfn, offset + view.nbytes + PAGE_SIZE - 1 >> PAGE_SHIFT)
        position = (mfn << PAGE_SHIFT) + offset
        while view.nbytes:
            written = os.pwrite(self._memfd, view, position)
            view = view[written:]
            position += written

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
