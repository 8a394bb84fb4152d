"""Address space in which frames of the machine come and go while views of it are alive."""

import ctypes
import functools
import mmap
from collections.abc import Sequence
from contextlib import suppress

from ring3.abi.xen import PAGE_SHIFT
from ring3.errors import Error
from ring3.libs.foreignmemory import runs

_MAP_FIXED = 0x10
_MAP_FAILED = ctypes.c_void_p(-1).value


@functools.cache
def _libc_mmap() -> "ctypes._NamedFuncPointer":
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    function.restype = ctypes.c_void_p
    return function


class Window:
    """A piece of address space whose pages can be replaced while views of it are alive; zero pages at first."""

    def __init__(self, nr_pages: int) -> None:
        self._area = mmap.mmap(-1, nr_pages << PAGE_SHIFT, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._anchor: ctypes.c_char | None = ctypes.c_char.from_buffer(self._area)
        self._base = ctypes.addressof(self._anchor)
        self.view = memoryview(self._area)

    def address(self, page: int) -> int:
        """Returns the address of a page of it."""
        return self._base + (page << PAGE_SHIFT)

    def show(self, page: int, memfd: int, mfn: int, nr_pages: int, *, writable: bool) -> None:
        """Replaces pages by frames of the machine."""
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._place(page, nr_pages, prot, mmap.MAP_SHARED, memfd, mfn << PAGE_SHIFT)

    def show_all(self, memfd: int, mfns: Sequence[int], *, writable: bool) -> None:
        """Replaces the first pages by these frames."""
        for index, length in runs(mfns):
            self.show(index, memfd, mfns[index], length, writable=writable)

    def clear(self) -> None:
        """Replaces all pages by zero pages."""
        prot, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._place(0, len(self._area) >> PAGE_SHIFT, prot, flags, -1, 0)

    def _place(self, page: int, nr_pages: int, prot: int, flags: int, fd: int, offset: int) -> None:
        at = self.address(page)
        if _libc_mmap()(at, nr_pages << PAGE_SHIFT, prot, flags | _MAP_FIXED, fd, offset) == _MAP_FAILED:
            raise Error(f"the host cannot map granted frames: errno {ctypes.get_errno()}")

    def close(self) -> None:
        """Lets go of the address space, at the latest with the last view."""
        self._anchor = None
        with suppress(BufferError):
            self.view.release()
            self._area.close()
