"""What a service of domain 0 gives up before it serves anybody: files outside its directory, programs, the network.

By Landlock (files, TCP, signals), a filter of system calls, and no_new_privs. A kernel without one of them leaves the
others. Holds for the calling thread and what it starts, so it comes first. The hypervisor's own walls are stricter, and
elsewhere (crates/lockdown).
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Final

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2

# Source: Linux, linux/landlock.h.
_SYS_CREATE_RULESET: Final = 444
_SYS_ADD_RULE: Final = 445
_SYS_RESTRICT_SELF: Final = 446
_CREATE_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1
_FS_EXECUTE: Final = 1 << 0
_FS_READ: Final = _FS_EXECUTE | 1 << 2 | 1 << 3
"""EXECUTE (for libraries: to map them), READ_FILE, READ_DIR."""
_FS_FILE: Final = _FS_EXECUTE | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
"""What a rule on a file may hold: EXECUTE, WRITE_FILE, READ_FILE, TRUNCATE, IOCTL_DEV."""
_FS_BITS_BY_ABI: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""ABI of Landlock to the number of rights on files that it knows."""
_NET_ALL: Final = 3
_SCOPE_ALL: Final = 3

# Source: Linux, asm/unistd_64.h.
_SYS_SOCKET: Final = 41
_SYS_CLONE: Final = 56
_SYS_CLONE3: Final = 435
_CLONE_THREAD: Final = 0x10000
_AF_UNIX: Final = 1
_FORBIDDEN: Final = (
    *(57, 58, 59, 322),  # fork, vfork, execve, execveat
    *(101, 310, 311, 438),  # ptrace, process_vm_readv, process_vm_writev, pidfd_getfd
    *(155, 161, 165, 166, 272, 308, 428, 429, 430, 442),  # pivot_root, chroot, mounts, unshare, setns
    *(175, 176, 246, 313, 320),  # modules, kexec
    *(248, 249, 250, 298, 304, 321, 323, 425, 426, 427),  # keys, perf, file handles, bpf, userfaultfd, io_uring
)
_AUDIT_ARCH_X86_64: Final = 0xC000003E
_X32: Final = 0x40000000
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_IF_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026

OPEN_FILES_MAX: Final = 4096


def confine(writable: Iterable[Path], *, readable: Iterable[Path] = ()) -> None:
    """Leaves to this process: its code, files beneath `writable` and (not to be changed) `readable`, Unix sockets, and
    what is open. Raises OSError.
    """
    for kind, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, OPEN_FILES_MAX)):
        _soft, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _restrict_files(libc, writable, readable)
    program = filter_program()
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    _check(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0), "seccomp")


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _code_paths() -> set[Path]:
    """Returns where the interpreter, this package and the libraries of both are."""
    paths = {Path(place) for place in (sys.prefix, sys.base_prefix, *sys.path) if place}
    paths |= {Path(os.__file__).parent, Path(__file__).parent.parent}
    return paths | {Path("/lib"), Path("/lib64"), Path("/usr/lib"), Path("/etc/ld.so.cache"), Path("/etc/localtime")}


def _restrict_files(libc: ctypes.CDLL, writable: Iterable[Path], readable: Iterable[Path]) -> None:
    abi = libc.syscall(_SYS_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    if abi < 1:
        return
    rights = (1 << _FS_BITS_BY_ABI.get(abi, max(_FS_BITS_BY_ABI.values()))) - 1
    attribute = struct.pack("<QQQ", rights, _NET_ALL if abi >= 4 else 0, _SCOPE_ALL if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _check(libc.syscall(_SYS_CREATE_RULESET, attribute, size, 0), "Landlock")
    try:
        for path in (*_code_paths(), *readable):
            _allow(libc, ruleset, path, _FS_READ)
        for path in writable:
            _allow(libc, ruleset, path, rights & ~_FS_EXECUTE)
        _check(libc.syscall(_SYS_RESTRICT_SELF, ruleset, 0), "Landlock")
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not path.is_dir():
            rights &= _FS_FILE
        rule = struct.pack("<Qi", rights, fd)
        _check(libc.syscall(_SYS_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0), f"Landlock, {path}")
    finally:
        os.close(fd)


def filter_program() -> bytes:
    """Returns the filter, as classic BPF: 8 bytes an instruction. Source: Linux, linux/filter.h and linux/seccomp.h."""

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("<HBBI", code, if_true, if_false, value)

    nr, arch, argument0 = 0, 4, 16
    head = [step(_LOAD, arch), step(_JUMP_EQUAL, _AUDIT_ARCH_X86_64, 1, 0), step(_RETURN, _KILL), step(_LOAD, nr)]
    ends = {
        "allow": [step(_RETURN, _ALLOW)],
        "refuse": [step(_RETURN, _EPERM)],
        "absent": [step(_RETURN, _ENOSYS)],
        "if Unix": [step(_LOAD, argument0), step(_JUMP_EQUAL, _AF_UNIX, 0, 1)],
        "allow, 2": [step(_RETURN, _ALLOW), step(_RETURN, _EPERM)],
        "if a thread": [step(_LOAD, argument0), step(_JUMP_IF_BITS, _CLONE_THREAD, 0, 1)],
        "allow, 3": [step(_RETURN, _ALLOW), step(_RETURN, _EPERM)],
    }
    places = dict(zip(ends, accumulate((len(end) for end in ends.values()), initial=0), strict=False))
    tests = [
        (_JUMP_AT_LEAST, _X32, "refuse"),
        (_JUMP_EQUAL, _SYS_SOCKET, "if Unix"),
        (_JUMP_EQUAL, _SYS_CLONE, "if a thread"),
        # The filter cannot see its arguments; the C library takes clone where there is no clone3.
        (_JUMP_EQUAL, _SYS_CLONE3, "absent"),
        *((_JUMP_EQUAL, number, "refuse") for number in _FORBIDDEN),
    ]
    body = [step(code, value, len(tests) - 1 - i + places[end]) for i, (code, value, end) in enumerate(tests)]
    return b"".join([*head, *body, *(instruction for end in ends.values() for instruction in end)])
