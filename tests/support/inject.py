"""Makes a thread of another process carry out system calls, by ptrace: what may it do?"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_ATTACH, _DETACH, _STEP, _GETREGS, _SETREGS = 16, 17, 9, 12, 13
_WALL = 0x40000000
"""__WALL of waitpid: threads, too. Source: Linux, linux/wait.h."""
_NAMES = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss".split()  # noqa: SIM905
_NR_WORDS = 27
"""Of user_regs_struct. Source: Linux, asm/user_64.h."""
_SYSCALL = b"\x0f\x05"
_BELOW_STACK = 1024


class InjectError(Exception):
    """The host does not let us trace, or the thread is not in a system call."""


class Thread:
    """A stopped thread."""

    def __init__(self, pid: int, tid: int) -> None:
        self._pid, self._tid = pid, tid
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self._libc.ptrace.restype = ctypes.c_long

    def _ptrace(self, request: int, data: object = None) -> None:
        if self._libc.ptrace(request, self._tid, None, data) < 0:
            raise InjectError(os.strerror(ctypes.get_errno()))

    def _wait(self) -> None:
        os.waitpid(self._tid, _WALL)

    def _registers(self) -> dict[str, int]:
        words = (ctypes.c_uint64 * _NR_WORDS)()
        self._ptrace(_GETREGS, words)
        self._words = list(words)
        return dict(zip(_NAMES, words, strict=False))

    def _set_registers(self, registers: dict[str, int]) -> None:
        words = [registers.get(name, 0) for name in _NAMES] + self._words[len(_NAMES) :]
        self._ptrace(_SETREGS, (ctypes.c_uint64 * _NR_WORDS)(*words))

    def attach(self) -> None:
        """Stops the thread, which must be waiting in a system call. Raises InjectError."""
        self._ptrace(_ATTACH)
        self._wait()
        self._saved = self._registers()
        with open(f"/proc/{self._pid}/mem", "rb") as memory:
            memory.seek(self._saved["rip"] - len(_SYSCALL))
            if memory.read(len(_SYSCALL)) != _SYSCALL:
                self._ptrace(_DETACH)
                raise InjectError("the thread is not in a system call")

    def detach(self) -> None:
        """Lets it go on where it was."""
        self._set_registers(self._saved)
        self._ptrace(_DETACH)

    def syscall(self, number: int, *arguments: int | bytes) -> int:
        """Carries out a system call in the thread; byte strings become pointers to them. Returns its result."""
        at = (self._saved["rsp"] - _BELOW_STACK) & ~15
        registers = dict(self._saved)
        with open(f"/proc/{self._pid}/mem", "r+b", buffering=0) as memory:
            for name, argument in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False):
                if isinstance(argument, bytes):
                    at -= len(argument) + 1 + 15 & ~15
                    memory.seek(at)
                    memory.write(argument + b"\0")
                    registers[name] = at
                else:
                    registers[name] = argument & (1 << 64) - 1
        registers |= {"rax": number, "orig_rax": (1 << 64) - 1, "rip": self._saved["rip"] - len(_SYSCALL)}
        self._set_registers(registers)
        self._ptrace(_STEP)
        self._wait()
        result = self._registers()["rax"]
        return result - (1 << 64) if result >> 63 else result


@contextmanager
def stopped(pid: int, tid: int) -> Iterator[Thread]:
    """A thread of `pid`, stopped meanwhile. Raises InjectError."""
    thread = Thread(pid, tid)
    thread.attach()
    try:
        yield thread
    finally:
        thread.detach()
