"""`ring3 doctor`: what this machine offers, and what to do about what it lacks."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from ring3.errors import ConfigError
from ring3.tools import launch, rundir

_MEMORY_MIB_WANTED: Final = 512
_DESCRIPTORS_WANTED: Final = 1024
_NEEDED_FLAGS: Final = {
    "fsgsbase": "the engine bt keeps vCPU state at GS; without it every entry and exit of a guest costs a system call",
    "sse4_2": "Debian 12's own baseline is below this, but the engine is not tested without",
}
_USEFUL_FLAGS: Final = {
    "bmi2": "guests see less of the CPU",
    "avx2": "guests see less of the CPU",
    "constant_tsc": "the guests' clock is read by system calls instead of from the TSC",
    "nonstop_tsc": "the guests' clock is read by system calls instead of from the TSC",
}
_TOOLS: Final = {
    "gcc": ("gcc", "builds the tests' guests and the benchmark"),
    "busybox": ("busybox-static", "the guests' userland in demonstration and tests"),
    "dpkg-deb": ("dpkg", "unpacks the guests' kernels"),
    "apt-get": ("apt", "downloads the guests' kernels"),
    "qemu-system-x86_64": ("qemu-system-x86", "what the benchmark compares with"),
    "cargo": ("cargo (rustup.rs for a new enough one)", "builds the native core"),
}


class Verdict(StrEnum):
    """How a check went."""

    OK = "ok"
    WARNING = "warn"
    """Works, with less."""
    PROBLEM = "FAIL"
    """Guests cannot run."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    verdict: Verdict
    what: str
    advice: str = ""


def doctor() -> int:
    """Prints the report; returns 0 if guests can run, 1 otherwise."""
    findings = [*_engines(), *_cpu(), *_memory(), *_limits(), *_place(), *_packages()]
    for finding in findings:
        print(f"[{finding.verdict:>4}] {finding.what}")
        if finding.advice:
            print(f"       {finding.advice}")
    return int(any(finding.verdict is Verdict.PROBLEM for finding in findings))


def _engines() -> list[Finding]:
    try:
        from ring3._core import Hypervisor, direct_execution
    except ImportError as error:
        return [Finding(Verdict.PROBLEM, f"the native core is not built: {error}", "make build")]
    findings = [
        Finding(Verdict.WARNING, f"engine {name}: {reason}") if reason else Finding(Verdict.OK, f"engine {name}")
        for name, reason in Hypervisor.engines()
    ]
    if reason := direct_execution():
        advice = "user code that computes is translated: two to six times slower than it could be"
        findings.append(Finding(Verdict.WARNING, f"no direct execution: {reason}", advice))
    else:
        findings.append(Finding(Verdict.OK, "direct execution of user code"))
    if not any(finding.verdict is Verdict.OK for finding in findings):
        findings.append(Finding(Verdict.PROBLEM, "no engine is available", "see the reasons above"))
    return findings


def _cpu() -> list[Finding]:
    if platform.machine() != "x86_64":
        return [Finding(Verdict.PROBLEM, f"the CPU is {platform.machine()}", "guests need an x86-64 host")]
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError as error:
        return [Finding(Verdict.WARNING, f"/proc/cpuinfo: {error.strerror}")]
    flags: set[str] = set()
    model = "unknown"
    for line in text.splitlines():
        key, _colon, value = line.partition(":")
        if key.strip() == "flags":
            flags = set(value.split())
        elif key.strip() == "model name":
            model = value.strip()
    findings = [Finding(Verdict.OK, f"CPU {model}, {len(os.sched_getaffinity(0))} for this process")]
    for verdict, wanted in ((Verdict.PROBLEM, _NEEDED_FLAGS), (Verdict.WARNING, _USEFUL_FLAGS)):
        for flag, why in wanted.items():
            is_there = flag in flags
            findings.append(
                Finding(Verdict.OK if is_there else verdict, f"CPU feature {flag}", "" if is_there else why)
            )
    return findings


def _memory() -> list[Finding]:
    available = launch.available_host_mib()
    if available is None:
        return [Finding(Verdict.WARNING, "/proc/meminfo does not say how much memory there is")]
    if available < _MEMORY_MIB_WANTED:
        return [
            Finding(
                Verdict.WARNING, f"{available} MiB of memory are available", "fewer or smaller guests fit: --memory"
            )
        ]
    return [Finding(Verdict.OK, f"{available} MiB of memory are available")]


def _limits() -> list[Finding]:
    import resource

    findings = []
    try:
        os.close(os.memfd_create("ring3-doctor", os.MFD_CLOEXEC))
        findings.append(Finding(Verdict.OK, "memfd_create"))
    except OSError as error:
        findings.append(Finding(Verdict.PROBLEM, f"memfd_create: {error.strerror}", "machine memory is a memfd"))
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _DESCRIPTORS_WANTED:
        findings.append(Finding(Verdict.WARNING, f"{soft} descriptors a process", f"ulimit -n {_DESCRIPTORS_WANTED}"))
    if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
        findings.append(
            Finding(
                Verdict.WARNING, "the size of files is limited", "it limits machine memory too: ulimit -f unlimited"
            )
        )
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        findings.append(Finding(Verdict.WARNING, "address space is limited", "ulimit -v unlimited"))
    try:
        ctypes.CDLL("libatomic.so.1")
    except OSError:
        findings.append(Finding(Verdict.PROBLEM, "libatomic is missing", "apt install libatomic1"))
    return findings


def _place() -> list[Finding]:
    place = rundir.default()
    try:
        place.create()
    except ConfigError as error:
        return [Finding(Verdict.PROBLEM, str(error), "RING3_RUN_DIR can name another directory")]
    state = "a hypervisor is running" if place.is_running() else "no hypervisor is running"
    return [Finding(Verdict.OK, f"state directory {place.path}: {state}")]


def _packages() -> list[Finding]:
    return [
        Finding(Verdict.OK, f"{command}")
        if shutil.which(command)
        else Finding(Verdict.WARNING, f"{command} is missing: {why}", f"apt install {package}")
        for command, (package, why) in _TOOLS.items()
    ]
