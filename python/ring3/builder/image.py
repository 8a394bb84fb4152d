"""Copying a domain's images into its frames, beside whatever else its start takes: the host finds a page for each frame
meanwhile, which is what most of the time goes to.

What is to be copied is known before: a thread that computes would wait for Python's lock, and have others wait.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from typing import Self

from ring3.abi.xen import PAGE_SIZE
from ring3.builder.kernel import Kernel
from ring3.libs.foreignmemory import ForeignMemory


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
        for address, data in self._kernel.pieces:
            first, offset = divmod(address, PAGE_SIZE)
            head = min(-offset % PAGE_SIZE, len(data))
            if head:
                self._frames.write(self._p2m[first], data[:head], offset)
                first += 1
            self._frames.write_frames(self._p2m[first:], data[head:])
