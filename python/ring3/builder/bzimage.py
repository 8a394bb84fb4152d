"""Linux's bzImage container. Source: Linux, Documentation/x86/boot.rst, "The Real-Mode Kernel Header"."""

import struct
from typing import NamedTuple

BOOT_FLAG_OFFSET = 0x1FE
HEADER_MAGIC_OFFSET = 0x202
_SETUP_SECTS_OFFSET = 0x1F1
_VERSION_OFFSET = 0x206
_PAYLOAD_OFFSET = 0x248
_HEADER_END = 0x250
_FIRST_VERSION_WITH_PAYLOAD = 0x0208


class BzImageError(ValueError):
    """The container is damaged; the message says how."""


class BzImage(NamedTuple):
    """Where the payload lies, and what it becomes."""

    payload: memoryview
    """Without the size word that the build appends; gzip keeps it, as it is part of that format."""
    payload_is_elf: bool
    uncompressed_bytes: int


def is_bzimage(data: memoryview) -> bool:
    """Whether the file claims to be one (any version)."""
    return (
        bytes(data[BOOT_FLAG_OFFSET : BOOT_FLAG_OFFSET + 2]) == b"\x55\xaa"
        and bytes(data[HEADER_MAGIC_OFFSET : HEADER_MAGIC_OFFSET + 4]) == b"HdrS"
    )


def parse(data: memoryview) -> BzImage:
    """Finds the payload. Raises BzImageError."""
    if len(data) < _HEADER_END:
        raise BzImageError("truncated bzImage: the set-up header is cut short")
    (version,) = struct.unpack_from("<H", data, _VERSION_OFFSET)
    if version < _FIRST_VERSION_WITH_PAYLOAD:
        raise BzImageError(f"bzImage of boot protocol {version >> 8}.{version & 255:02}; 2.08 (Linux 2.6.26) is needed")
    setup_sects = data[_SETUP_SECTS_OFFSET] or 4
    offset, length = struct.unpack_from("<II", data, _PAYLOAD_OFFSET)
    start = (setup_sects + 1) * 512 + offset
    if length < 8:
        raise BzImageError("bzImage without a payload")
    if start + length > len(data):
        raise BzImageError(f"truncated bzImage: {len(data):#x} bytes of at least {start + length:#x}")
    payload = data[start : start + length]
    if bytes(payload[:4]) == b"\x7fELF":  # CONFIG_KERNEL_UNCOMPRESSED
        return BzImage(payload, True, length)
    (size,) = struct.unpack_from("<I", payload, length - 4)
    is_gzip = bytes(payload[:2]) == b"\x1f\x8b"
    return BzImage(payload if is_gzip else payload[:-4], False, size)
