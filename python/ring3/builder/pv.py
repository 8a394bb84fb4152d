"""Building a PV64 domain: memory, image, P2M, page tables, start_info and the first vCPU, all by Xen's own hypercalls.

The domain exists already (createdomain, max_vcpus, max_mem, its two event channels) and stays paused. Guest memory is
written as data, in runs of frames; frames that stay zero are never touched, so they cost no host memory.
"""

import contextlib
import ctypes
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ring3.abi import arch_x86 as x86
from ring3.abi import start_info as si
from ring3.abi.grant_table import (
    GNTTAB_RESERVED_CONSOLE,
    GNTTAB_RESERVED_XENSTORE,
    GTF_permit_access,
    grant_entry_v1,
)
from ring3.abi.xen import PAGE_SHIFT, XEN_LEGACY_MAX_VCPUS, shared_info, vcpu_info
from ring3.builder.image import ImageCopy
from ring3.builder.kernel import Kernel, map_file
from ring3.builder.layout import Layout, pages, plan
from ring3.errors import ConfigError
from ring3.libs import domctl, memory, mmu
from ring3.libs.connection import Connection
from ring3.libs.foreignmemory import ForeignMemory
from ring3.libs.gnttab import Grants


class Ramdisk(NamedTuple):
    """A ramdisk's file and contents."""

    path: Path
    data: memoryview


class BuiltDomain(NamedTuple):
    """What the toolstack must know of a domain that has been built."""

    domid: int
    nr_pages: int
    store_mfn: int
    store_evtchn: int
    console_mfn: int
    console_evtchn: int
    start_info_mfn: int
    p2m: "array[int]"
    """MFN of every PFN."""


def load_ramdisk(path: str | Path) -> Ramdisk:
    """Reads a ramdisk. Raises ConfigError naming the file."""
    return Ramdisk(Path(path), map_file(Path(path), "ramdisk")[0])


def check(kernel: Kernel, ramdisk: Ramdisk | None, *, memory_mib: int, cmdline: str = "") -> Layout:
    """Lays the domain out without a hypervisor. Raises ConfigError and BuildError as build() would."""
    _encoded(cmdline)
    return plan(kernel, nr_pages=memory_mib << 8, nr_ramdisk_bytes=len(ramdisk.data) if ramdisk else 0)


@contextlib.contextmanager
def build(
    conn: Connection,
    domid: int,
    kernel: Kernel,
    *,
    memory_mib: int,
    store_evtchn: int,
    console_evtchn: int,
    ramdisk: Ramdisk | None = None,
    cmdline: str = "",
) -> Iterator[BuiltDomain]:
    """Fills an empty domain, up to the point where unpausedomain starts it. Within the `with` statement its images are
    still being copied: time to tell xenstore. They are there at its end.

    Raises ConfigError, BuildError (nothing was done), NoMemory, HypercallError (the domain is of no use: destroy it).
    """
    layout = check(kernel, ramdisk, memory_mib=memory_mib, cmdline=cmdline)
    # What the images go to comes first, so that they are copied while the rest is allocated.
    nr_first = max(pages(kernel.end), layout.ramdisk_pfn + pages(layout.nr_ramdisk_bytes))
    nr_pages = layout.nr_pages
    p2m = memory.populate_physmap(conn, domid, range(nr_first), nr_wanted=nr_pages)
    frames = ForeignMemory(conn.memfd, conn.nr_frames)
    data = ramdisk.data if ramdisk else None
    with ImageCopy(frames, p2m, kernel, ramdisk=data, ramdisk_pfn=layout.ramdisk_pfn):
        p2m += memory.populate_physmap(conn, domid, range(nr_first, nr_pages), nr_before=nr_first, nr_wanted=nr_pages)
        frames.write_frames(p2m[layout.p2m_pfn :], p2m)
        table_mfns = array("Q", [p2m[pfn] for pfn in layout.tables.pfns])
        frames.write_frames(table_mfns, b"".join(entries.tobytes() for _, entries in layout.tables.render(p2m)))
        shared_info_mfn = domctl.getdomaininfo(conn, domid).shared_info_mfn
        _mask_upcalls(frames, shared_info_mfn)
        info = _start_info(layout, p2m, cmdline, shared_info_mfn, store_evtchn, console_evtchn)
        frames.write(p2m[layout.start_info_pfn], bytes(info))
        root_mfn = p2m[layout.first_table_pfn]
        mmu.pin_table(conn, domid, 4, root_mfn)
        _grant_rings(conn, frames, domid, console_mfn=p2m[layout.console_pfn], store_mfn=p2m[layout.xenstore_pfn])
        domctl.setvcpucontext(conn, domid, 0, bytes(_first_vcpu(kernel, layout, root_mfn)))
        yield BuiltDomain(
            domid=domid,
            nr_pages=nr_pages,
            store_mfn=p2m[layout.xenstore_pfn],
            store_evtchn=store_evtchn,
            console_mfn=p2m[layout.console_pfn],
            console_evtchn=console_evtchn,
            start_info_mfn=p2m[layout.start_info_pfn],
            p2m=p2m,
        )
    if kernel.notes.hypercall_page is not None:  # part of the kernel's image: its stubs come last
        page = kernel.notes.hypercall_page - layout.virt_base >> PAGE_SHIFT
        domctl.hypercall_init(conn, domid, p2m[page])


def _grant_rings(conn: Connection, frames: ForeignMemory, domid: int, *, console_mfn: int, store_mfn: int) -> None:
    """Grants the two rings to domain 0 in the guest's name, in the entries that are reserved for them."""
    [table_mfn] = Grants(conn).table_frames(domid, 1)
    for gref, mfn in ((GNTTAB_RESERVED_CONSOLE, console_mfn), (GNTTAB_RESERVED_XENSTORE, store_mfn)):
        entry = grant_entry_v1(flags=GTF_permit_access, domid=0, frame=mfn)
        frames.write(table_mfn, bytes(entry), gref * ctypes.sizeof(entry))


def _mask_upcalls(frames: ForeignMemory, shared_info_mfn: int) -> None:
    """A kernel starts with event delivery masked on every vCPU. The rest of shared_info is the hypervisor's."""
    first = shared_info.vcpu_info.offset + vcpu_info.evtchn_upcall_mask.offset
    frames.write_scattered(shared_info_mfn, b"\1", range(first, first + 64 * XEN_LEGACY_MAX_VCPUS, 64))


def _start_info(
    layout: Layout, p2m: Sequence[int], cmdline: str, shared_info_mfn: int, store_evtchn: int, console_evtchn: int
) -> si.start_info:
    info = si.start_info(
        magic=si.START_INFO_MAGIC,
        nr_pages=layout.nr_pages,
        shared_info=shared_info_mfn << PAGE_SHIFT,
        store_mfn=p2m[layout.xenstore_pfn],
        store_evtchn=store_evtchn,
        console_mfn=p2m[layout.console_pfn],
        console_evtchn=console_evtchn,
        pt_base=layout.vaddr(layout.first_table_pfn),
        nr_pt_frames=layout.nr_tables,
        mfn_list=layout.p2m_vaddr,
        cmd_line=_encoded(cmdline),
    )
    info.flags = si.SIF_VIRT_P2M_4TOOLS
    if layout.nr_ramdisk_bytes:
        info.mod_len = layout.nr_ramdisk_bytes
        if layout.ramdisk_is_mapped:
            info.mod_start = layout.vaddr(layout.ramdisk_pfn)
        else:
            info.mod_start = layout.ramdisk_pfn
            info.flags |= si.SIF_MOD_START_PFN
    if layout.p2m_is_separate:
        info.first_p2m_pfn = layout.p2m_pfn
        info.nr_p2m_frames = layout.nr_p2m_frames
    return info


def _first_vcpu(kernel: Kernel, layout: Layout, root_mfn: int) -> x86.vcpu_guest_context:
    """The registers that a PV64 kernel starts with. Source: xen/include/public/xen.h and arch-x86/xen.h."""
    context = x86.vcpu_guest_context()
    stack_top = layout.vaddr(layout.stack_pfn + 1)
    regs = context.user_regs
    regs.rip = kernel.notes.entry
    regs.rsi = layout.vaddr(layout.start_info_pfn)
    regs.rsp = stack_top
    regs.rflags = x86.X86_EFLAGS_IF
    regs.cs = x86.FLAT_KERNEL_CS64
    regs.ss = x86.FLAT_KERNEL_SS64
    context.kernel_ss = x86.FLAT_KERNEL_SS64
    context.kernel_sp = stack_top
    context.ctrlreg[3] = root_mfn << PAGE_SHIFT
    context.debugreg[6] = x86.X86_DR6_DEFAULT
    context.debugreg[7] = x86.X86_DR7_DEFAULT
    context.flags = x86.VGCF_IN_KERNEL | x86.VGCF_online
    return context


def _encoded(cmdline: str) -> bytes:
    """Raises ConfigError for what start_info cannot hold."""
    raw = os.fsencode(cmdline)
    if len(raw) >= si.MAX_GUEST_CMDLINE:
        raise ConfigError(f"{len(raw)} bytes; at most {si.MAX_GUEST_CMDLINE - 1} are possible", key="cmdline")
    if b"\0" in raw:
        raise ConfigError("a NUL character within", key="cmdline")
    return raw
