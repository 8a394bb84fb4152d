"""The names that `cpuid` of xl.cfg(5) knows, and where in CPUID's leaves they are.

Sources: xl.cfg(5) of Xen 4.17 for the names; Intel SDM vol. 2 and AMD APM vol. 3, "CPUID", for the bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ring3.libs.cpu_policy import NO_SUBLEAF

_NONE: Final = NO_SUBLEAF


@dataclass(frozen=True, slots=True)
class Place:
    """`length` bits from `bit` on, in a register of a leaf."""

    leaf: int
    subleaf: int
    register: str
    bit: int
    length: int = 1


_BITS: Final[dict[tuple[int, int, str], str]] = {
    (0x1, _NONE, "ecx"): (
        "sse3:0 pclmulqdq:1 dtes64:2 monitor:3 dscpl:4 vmx:5 smx:6 est:7 tm2:8 ssse3:9 cntxid:10 fma:12 "
        "cmpxchg16:13 xtpr:14 pdcm:15 pcid:17 dca:18 sse4_1:19 sse4.1:19 sse4_2:20 sse4.2:20 x2apic:21 "
        "movbe:22 popcnt:23 tsc-deadline:24 aes:25 xsave:26 osxsave:27 avx:28 f16c:29 rdrand:30 hypervisor:31"
    ),
    (0x1, _NONE, "edx"): (
        "fpu:0 vme:1 de:2 pse:3 tsc:4 msr:5 pae:6 mce:7 cmpxchg8:8 apic:9 sysenter:11 mtrr:12 pge:13 mca:14 "
        "cmov:15 pat:16 pse36:17 psn:18 clfsh:19 ds:21 acpi:22 mmx:23 fxsr:24 sse:25 sse2:26 ss:27 htt:28 "
        "tm:29 ia64:30 pbe:31"
    ),
    (0x6, _NONE, "eax"): "arat:2",
    (0x7, 0, "ebx"): (
        "fsgsbase:0 tsc_adjust:1 bmi1:3 hle:4 avx2:5 smep:7 bmi2:8 erms:9 invpcid:10 rtm:11 cmt:12 mpx:14 "
        "avx512f:16 avx512dq:17 rdseed:18 adx:19 smap:20 avx512-ifma:21 avx512ifma:21 clflushopt:23 clwb:24 "
        "proc-trace:25 avx512pf:26 avx512er:27 avx512cd:28 sha:29 avx512bw:30 avx512vl:31"
    ),
    (0x7, 0, "ecx"): (
        "prefetchwt1:0 avx512-vbmi:1 avx512vbmi:1 umip:2 pku:3 ospke:4 avx512-vbmi2:6 cet-ss:7 gfni:8 vaes:9 "
        "vpclmulqdq:10 avx512-vnni:11 avx512-bitalg:12 avx512-vpopcntdq:14 rdpid:22 cldemote:25"
    ),
    (0x7, 0, "edx"): (
        "avx512-4vnniw:2 avx512-4fmaps:3 fsrm:4 md-clear:10 serialize:14 cet-ibt:20 ibrsb:26 stibp:27 "
        "l1d-flush:28 arch-caps:29 core-caps:30 ssbd:31"
    ),
    (0x7, 1, "eax"): "avx-vnni:4 avx512-bf16:5 fzrm:10 fsrs:11 fsrcs:12",
    (0xD, 1, "eax"): "xsaveopt:0 xsavec:1 xgetbv1:2 xsaves:3",
    (0x80000001, _NONE, "ecx"): (
        "lahfsahf:0 cmplegacy:1 svm:2 extapic:3 altmovcr8:4 abm:5 sse4a:6 misalignsse:7 3dnowprefetch:8 "
        "osvw:9 ibs:10 xop:11 skinit:12 wdt:13 lwp:15 fma4:16 nodeid:19 tbm:21 topoext:22 perfctr_core:23 "
        "perfctr_nb:24"
    ),
    (0x80000001, _NONE, "edx"): "syscall:11 nx:20 mmxext:22 ffxsr:25 page1gb:26 rdtscp:27 lm:29 3dnowext:30 3dnow:31",
    (0x80000007, _NONE, "edx"): "invtsc:8",
    (0x80000008, _NONE, "ebx"): "clzero:0 rstr-fp-err-ptrs:2 wbnoinvd:9 ibpb:12",
    (
        0x8000000A,
        _NONE,
        "edx",
    ): "svm_npt:0 svm_lbrv:1 svm_nrips:3 svm_tscrate:4 svm_vmcbclean:5 svm_decode:7 svm_pausefilt:10",
    (0x80000021, _NONE, "eax"): "lfence+:2 nscb:6",
}
"""NAME:BIT of features that are one bit."""

FEATURES: Final[dict[str, Place]] = {
    name: Place(*where, int(bit))
    for where, words in _BITS.items()
    for name, bit in (word.rsplit(":", 1) for word in words.split())
}

FIELDS: Final[dict[str, list[Place]]] = {
    "maxleaf": [Place(0, _NONE, "eax", 0, 32)],
    # a family above 15, and a model, are in two parts
    "family": [Place(1, _NONE, "eax", 8, 4), Place(1, _NONE, "eax", 20, 8)],
    "model": [Place(1, _NONE, "eax", 4, 4), Place(1, _NONE, "eax", 16, 4)],
    "stepping": [Place(1, _NONE, "eax", 0, 4)],
    "localapicid": [Place(1, _NONE, "ebx", 24, 8)],
    "proccount": [Place(1, _NONE, "ebx", 16, 8)],
    "clflush": [Place(1, _NONE, "ebx", 8, 8)],
    "brandid": [Place(1, _NONE, "ebx", 0, 8)],
    "procpkg": [Place(4, 0, "eax", 26, 6)],
    "maxhvleaf": [Place(0x40000000, _NONE, "eax", 0, 8)],
    "apicidsize": [Place(0x80000008, _NONE, "ecx", 12, 4)],
    "nc": [Place(0x80000008, _NONE, "ecx", 0, 8)],
}
"""Numbers."""
