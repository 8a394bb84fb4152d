"""Small kernels of every style that Xen's builder knows, each of which looks at what it finds when it starts."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import guests
from support.command import Ring3

pytestmark = pytest.mark.guest

_RAMDISK_BYTES = 3 * 1024 * 1024 + 123


@dataclass(frozen=True)
class Style:
    """How a kernel says what it is: macros of head.S, and flags of the link."""

    name: str
    macros: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    def flags_for(self, ramdisk_bytes: int) -> list[str]:
        """Returns gcc's flags."""
        return [*(f"-D{macro}" for macro in (*self.macros, f"RAMDISK_BYTES={ramdisk_bytes}")), *self.flags]


STYLES = [
    Style("plain"),
    Style("as-linux", ("WITH_INIT_P2M=0x8000000000", "WITH_MOD_START_PFN")),
    Style("p2m-elsewhere-ramdisk-mapped", ("WITH_INIT_P2M=0xffffc00000000000",)),
    Style("hypercall-page", ("WITH_HYPERCALL_PAGE",)),
    Style("as-netbsd", ("WITH_HYPERCALL_PAGE", "WITH_BSD_SYMTAB", "PADDR_OFFSET=0xffffffff80000000"),
          ("-Wl,--defsym=own_load=0xffffffff80000000",)),
    Style("as-mini-os", ("VIRT_BASE=0x0", "WITH_HYPERCALL_PAGE", "WITHOUT_ENTRY"),
          ("-Wl,--defsym=own_base=0", "-mcmodel=small")),
    Style("old-string", ("AS_STRING",)),
    Style("old-string-low", ("AS_STRING", "VIRT_BASE=0x0"), ("-Wl,--defsym=own_base=0", "-mcmodel=small")),
    Style("in-the-lower-half", ("VIRT_BASE=0x40000000",),
          ("-Wl,--defsym=own_base=0x40000000", "-mcmodel=small")),
]  # fmt: skip


@pytest.mark.parametrize("has_ramdisk", [False, True], ids=["", "ramdisk"])
@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_start_of_day(ring3: Ring3, tmp_path: Path, style: Style, has_ramdisk: bool) -> None:
    nr_bytes = _RAMDISK_BYTES if has_ramdisk else 0
    image = guests.build("start_of_day", tmp_path, *style.flags_for(nr_bytes))
    options: list[str | Path] = ["--memory", "32", "--cmdline", "one two"]
    if has_ramdisk:
        ramdisk = tmp_path / "ramdisk"
        ramdisk.write_bytes(bytes((i * 7 + i // 256) & 255 for i in range(nr_bytes)))
        options += ["--ramdisk", ramdisk]
    done = ring3("run", "--kernel", image, *options)
    assert done.exit_code == 0, done.describe()
    assert re.search(r"^VERDICT: SUCCESS", done.stdout, re.MULTILINE), done.describe()
