"""Atomic operations on 64-bit words of memory shared with the hypervisor.

Python has none, and a plain read, change and write of an event word would lose events that the hypervisor sets
meanwhile. They come from GCC's libatomic, through ctypes.
"""

import ctypes
import functools
import mmap

from ring3.errors import Error

_SEQ_CST = 5
"""__ATOMIC_SEQ_CST of GCC's memory model."""


@functools.cache
def _libatomic() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libatomic.so.1")
    except OSError as error:
        raise Error(f"libatomic.so.1 is missing (Debian: package libatomic1): {error}") from error
    for name in ("__atomic_exchange_8", "__atomic_fetch_and_8", "__atomic_fetch_or_8"):
        function = getattr(lib, name)
        function.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int]
        function.restype = ctypes.c_uint64
    lib.atomic_thread_fence.argtypes = [ctypes.c_int]
    lib.atomic_thread_fence.restype = None
    return lib


def fence() -> None:
    """Makes what was stored before visible to others before what comes after is loaded: x86 alone does not."""
    _libatomic().atomic_thread_fence(_SEQ_CST)


class AtomicWords:
    """64-bit words at byte offsets of a mapping. Keeps the mapping alive until release()."""

    def __init__(self, mapping: mmap.mmap) -> None:
        lib = _libatomic()
        self._exchange = getattr(lib, "__atomic_exchange_8")
        self._fetch_and = getattr(lib, "__atomic_fetch_and_8")
        self._fetch_or = getattr(lib, "__atomic_fetch_or_8")
        self._size = len(mapping)
        self._anchor: ctypes.c_char | None = ctypes.c_char.from_buffer(mapping)
        self._base = ctypes.addressof(self._anchor)

    def swap(self, offset: int, value: int) -> int:
        """Stores a word and returns the old one."""
        return int(self._exchange(self._at(offset), value, _SEQ_CST))

    def clear_bits(self, offset: int, bits: int) -> int:
        """Clears bits of a word and returns the old one."""
        return int(self._fetch_and(self._at(offset), ~bits & (1 << 64) - 1, _SEQ_CST))

    def set_bits(self, offset: int, bits: int) -> int:
        """Sets bits of a word and returns the old one."""
        return int(self._fetch_or(self._at(offset), bits, _SEQ_CST))

    def release(self) -> None:
        """Lets go of the mapping."""
        self._anchor = None

    def _at(self, offset: int) -> int:
        if self._anchor is None:
            raise ValueError("the mapping has been released")
        if offset & 7 or not 0 <= offset <= self._size - 8:
            raise ValueError(f"offset {offset:#x} is no word of a mapping of {self._size:#x} bytes")
        return self._base + offset
