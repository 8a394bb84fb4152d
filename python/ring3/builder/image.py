"""Copying a domain's images into its frames, beside whatever else its start takes: the host finds a page for each frame
meanwhile, which is what most of the time goes to.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from typing import Self

from ring3.abi.xen import PAGE_SHIFT, PAGE_SIZE
from ring3.builder.kernel import Kernel
from ring3.libs.foreignmemory import ForeignMemory

_ZERO_CHUNK = bytes(64 << 10)


class ImageCopy:
    """Writes kernel and ramdisk, by a thread of its own: a context manager that waits for it and raises its error."""

    def __init__(
        self,
        frames: ForeignMemory,
        p2m: Sequence[int],
        kernel: Kernel,
        *,
        ramdisk: memoryview | None = None,
        ramdisk_pfn: int = 0,
    ) -> None:
        """`p2m` has the frames that they need, at least."""
        self._frames = frames
        self._p2m = array("Q", p2m)
        self._kernel = kernel
        self._ramdisk = ramdisk
        self._ramdisk_pfn = ramdisk_pfn
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="image")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        # Also where the caller failed: the frames may be another domain's soon.
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def _run(self) -> None:
        try:
            self._write_kernel()
            if self._ramdisk is not None:
                self._frames.write_frames(self._p2m[self._ramdisk_pfn :], self._ramdisk)
        except BaseException as error:
            self._error = error

    def _write_kernel(self) -> None:
        """Copies the segments, and the symbols behind them."""
        kernel = self._kernel
        for segment in kernel.elf.segments:
            data = kernel.elf.data[segment.offset : segment.offset + segment.nr_file_bytes]
            self._write_at(kernel.notes.load_address(segment.paddr), data)
        if kernel.symbols:
            self._write_at(kernel.symbols_at, memoryview(kernel.symbols))

    def _write_at(self, address: int, data: memoryview) -> None:
        """Copies to an address, leaving out what is zero: .bss and .brk are part of the file in Linux's images."""
        head = min(-address % PAGE_SIZE, len(data))
        if head:
            self._frames.write(self._p2m[address >> PAGE_SHIFT], data[:head], address % PAGE_SIZE)
        self._write_sparse(self._p2m[address + head >> PAGE_SHIFT :], data[head:])

    def _write_sparse(self, mfns: array[int], data: memoryview) -> None:
        """Writes data from the start of the first frame, except 64 KiB chunks of zeros: the frames are zero already."""
        step = len(_ZERO_CHUNK)
        start: int | None = None  # of the chunks since the last zero one
        for position in range(0, len(data), step):
            chunk = data[position : position + step]
            # The two bytes rule out most chunks; comparing memoryviews instead of bytes would go element by element.
            is_zero = not chunk[0] and not chunk[-1] and bytes(chunk) == _ZERO_CHUNK[: len(chunk)]
            if is_zero and start is not None:
                self._frames.write_frames(mfns[start >> PAGE_SHIFT :], data[start:position])
                start = None
            elif not is_zero and start is None:
                start = position
        if start is not None:
            self._frames.write_frames(mfns[start >> PAGE_SHIFT :], data[start:])
