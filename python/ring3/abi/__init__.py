"""Xen's public ABI (4.17) for Python: constants and structures, one file per public header, no behaviour.

Names keep Xen's spelling, so that a search finds both sides. Structures are little-endian ctypes structures of the
64-bit ABI; tests/unit/abi compares every size and offset with the C headers.
"""
