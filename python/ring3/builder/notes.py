"""What a kernel asks of the builder, by ELF notes of Xen, or by the string of a section `__xen_guest` before them.

Source: xen/include/public/elfnote.h, which names that string's keys as "LEGACY".
"""

from typing import NamedTuple

from ring3.abi.arch_x86 import HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START
from ring3.abi.elfnote import ElfNote
from ring3.abi.features import (
    ELFNOTE_FEATURE_NAMES,
    XENFEAT_auto_translated_physmap,
    XENFEAT_supervisor_mode_kernel,
)
from ring3.abi.xen import PAGE_SHIFT, PAGE_SIZE
from ring3.builder.elf import Elf

PV_KERNEL_PACKAGES = "Debian's linux-image-amd64 and linux-image-cloud-amd64 contain one"
_NEVER_FOR_PV64 = {
    XENFEAT_auto_translated_physmap: "auto_translated_physmap",
    XENFEAT_supervisor_mode_kernel: "supervisor_mode_kernel",
}
_LEGACY_KEYS = {
    "VIRT_ENTRY": ElfNote.ENTRY,
    "HYPERCALL_PAGE": ElfNote.HYPERCALL_PAGE,
    "VIRT_BASE": ElfNote.VIRT_BASE,
    "ELF_PADDR_OFFSET": ElfNote.PADDR_OFFSET,
    "XEN_VER": ElfNote.XEN_VERSION,
    "GUEST_OS": ElfNote.GUEST_OS,
    "GUEST_VER": ElfNote.GUEST_VERSION,
    "LOADER": ElfNote.LOADER,
    "FEATURES": ElfNote.FEATURES,
    "BSD_SYMTAB": ElfNote.BSD_SYMTAB,
}
_STRINGS = (ElfNote.XEN_VERSION, ElfNote.GUEST_OS, ElfNote.GUEST_VERSION, ElfNote.LOADER, ElfNote.FEATURES)
_NUMBERS = (ElfNote.ENTRY, ElfNote.HYPERCALL_PAGE, ElfNote.VIRT_BASE, ElfNote.PADDR_OFFSET)
_ADDRESS_MASK = (1 << 64) - 1
_USER_END = 1 << 47
_KERNEL_START = (1 << 64) - (1 << 47)


class NotesError(ValueError):
    """The notes are missing or contradict themselves; the message names the note."""


class XenNotes(NamedTuple):
    """Checked notes of a PV64 kernel. Addresses are virtual, in bytes."""

    entry: int
    virt_base: int
    paddr_offset: int
    hypercall_page: int | None
    init_p2m: int | None
    """Where the kernel wants its P2M; None: within the initial mapping."""
    mod_start_pfn: bool
    """Whether the kernel takes a ramdisk that is not mapped."""
    guest_os: str
    guest_version: str
    required_features: frozenset[str]
    bsd_symtab: bool
    """Whether the kernel wants its symbol table behind it."""

    def load_address(self, paddr: int) -> int:
        """Returns the pseudo-physical address where a segment of this p_paddr belongs."""
        return paddr - self.paddr_offset


def parse(elf: Elf) -> XenNotes:
    """Checks the notes against each other and the segments. Raises NotesError."""
    raw: dict[int, bytes] = {}
    for note in elf.notes:
        raw[note.type] = note.desc  # the last one counts
    is_legacy = not raw and elf.guest_info is not None
    if elf.guest_info is not None and is_legacy:
        raw = _legacy(elf.guest_info)
    if not raw or (ElfNote.ENTRY not in raw and ElfNote.PHYS32_ENTRY in raw):
        raise NotesError(_no_entry(raw))
    strings = {kind: raw.get(kind, b"").split(b"\0", 1)[0].decode("latin-1") for kind in _STRINGS}
    if strings[ElfNote.XEN_VERSION] not in ("", "xen-3.0"):
        raise NotesError(f"ELF note XEN_VERSION is {strings[ElfNote.XEN_VERSION]!r} instead of 'xen-3.0'")
    if strings[ElfNote.LOADER] not in ("", "generic"):
        raise NotesError(f"ELF note LOADER is {strings[ElfNote.LOADER]!r} instead of 'generic'")
    if ElfNote.PADDR_OFFSET in raw and ElfNote.VIRT_BASE not in raw:
        raise NotesError("ELF note PADDR_OFFSET without VIRT_BASE")
    entry, paddr_offset = _number(raw, ElfNote.ENTRY), _number(raw, ElfNote.PADDR_OFFSET)
    virt_base = _number(raw, ElfNote.VIRT_BASE) or 0
    if paddr_offset is None:
        paddr_offset = virt_base if is_legacy else 0
    notes = XenNotes(
        entry=elf.entry if entry is None else entry,
        virt_base=virt_base,
        paddr_offset=paddr_offset,
        hypercall_page=_number(raw, ElfNote.HYPERCALL_PAGE),
        init_p2m=_number(raw, ElfNote.INIT_P2M),
        mod_start_pfn=bool(_number(raw, ElfNote.MOD_START_PFN)),
        guest_os=strings[ElfNote.GUEST_OS],
        guest_version=strings[ElfNote.GUEST_VERSION],
        required_features=_required_features(strings[ElfNote.FEATURES]),
        bsd_symtab=raw.get(ElfNote.BSD_SYMTAB, b"").startswith(b"yes"),
    )
    _check_addresses(elf, notes, _number(raw, ElfNote.HV_START_LOW))
    return notes


def _legacy(text: str) -> dict[int, bytes]:
    """Returns the old string's values as notes would say them. Raises NotesError."""
    raw: dict[int, bytes] = {}
    for pair in text.split(","):
        key, _, value = pair.partition("=")
        kind = _LEGACY_KEYS.get(key.strip())
        if kind is None:
            continue
        if kind in _NUMBERS:
            try:
                number = int(value, 0)
            except ValueError as error:
                raise NotesError(f"__xen_guest: {key}={value} is no number") from error
            if not 0 <= number < 1 << 64:
                raise NotesError(f"__xen_guest: {key}={value} is no address")
            raw[kind] = number.to_bytes(8, "little")
        else:
            # The presence of BSD_SYMTAB is what counted.
            raw[kind] = b"yes" if kind is ElfNote.BSD_SYMTAB else value.encode("latin-1")
    if ElfNote.HYPERCALL_PAGE in raw:  # by its number, counted from VIRT_BASE
        page = int.from_bytes(raw[ElfNote.HYPERCALL_PAGE], "little")
        base = int.from_bytes(raw.get(ElfNote.VIRT_BASE, b""), "little")
        raw[ElfNote.HYPERCALL_PAGE] = (base + (page << PAGE_SHIFT) & _ADDRESS_MASK).to_bytes(8, "little")
    return raw


def _no_entry(raw: dict[int, bytes]) -> str:
    if ElfNote.PHYS32_ENTRY in raw:
        what = "the Xen ELF note ENTRY (1) is missing; PHYS32_ENTRY (18) is there, so this kernel is for PVH only"
    else:
        what = "no Xen ELF notes (as ENTRY, 1) and no section __xen_guest, so this is not a Xen PV kernel"
    return f"{what}; a PV kernel is built with CONFIG_XEN_PV; {PV_KERNEL_PACKAGES}"


def _number(raw: dict[int, bytes], kind: ElfNote) -> int | None:
    desc = raw.get(kind)
    if desc is None:
        return None
    if len(desc) not in (1, 2, 4, 8):
        raise NotesError(f"ELF note {kind.name} has {len(desc)} bytes, which is no number")
    return int.from_bytes(desc, "little")


def _required_features(text: str) -> frozenset[str]:
    """Returns the names that come with "!": the kernel does not start without them."""
    required = frozenset(word[1:] for word in text.split("|") if word.startswith("!"))
    for name in sorted(required):
        number = ELFNOTE_FEATURE_NAMES.get(name)
        if number is None or number in _NEVER_FOR_PV64:
            raise NotesError(f"ELF note FEATURES requires {name!r}, which a 64-bit PV domain cannot have")
    return required


def _check_addresses(elf: Elf, notes: XenNotes, hv_start_low: int | None) -> None:
    first, last = elf.segments[0], elf.segments[-1]
    start = notes.virt_base + notes.load_address(first.paddr)
    end = notes.virt_base + notes.load_address(last.paddr) + last.nr_bytes
    if notes.virt_base % PAGE_SIZE:
        raise NotesError(f"ELF note VIRT_BASE {notes.virt_base:#x} is not at a page boundary")
    if notes.load_address(first.paddr) < 0:
        raise NotesError(f"ELF note PADDR_OFFSET {notes.paddr_offset:#x} is above the first segment ({first.paddr:#x})")
    if not _is_mappable(notes.virt_base, end):
        raise NotesError(f"ELF note VIRT_BASE {notes.virt_base:#x} puts the kernel where a guest cannot be mapped")
    if not start <= notes.entry < end:
        raise NotesError(f"ELF note ENTRY {notes.entry:#x} is outside the kernel ({start:#x} to {end:#x})")
    if notes.hypercall_page is not None and (
        notes.hypercall_page % PAGE_SIZE or not start <= notes.hypercall_page <= end - PAGE_SIZE
    ):
        raise NotesError(f"ELF note HYPERCALL_PAGE {notes.hypercall_page:#x} is no page of the kernel")
    if notes.init_p2m is not None and (
        notes.init_p2m % PAGE_SIZE or not _is_mappable(notes.init_p2m, notes.init_p2m + PAGE_SIZE)
    ):
        raise NotesError(f"ELF note INIT_P2M {notes.init_p2m:#x} is no place for a P2M")
    if hv_start_low is not None and hv_start_low > HYPERVISOR_VIRT_START:
        raise NotesError(f"ELF note HV_START_LOW {hv_start_low:#x} is above {HYPERVISOR_VIRT_START:#x}")


def _is_mappable(start: int, end: int) -> bool:
    """Whether a guest may map these addresses: canonical, in one half, not the hypervisor's."""
    if 0 <= start < end <= _USER_END:
        return True
    if not _KERNEL_START <= start < end <= 1 << 64:
        return False
    return end <= HYPERVISOR_VIRT_START or start >= HYPERVISOR_VIRT_END
