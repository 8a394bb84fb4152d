"""Sizes that do not fit, before any hypervisor is asked."""

from pathlib import Path

import pytest

from ring3.builder import kernel, pv
from ring3.errors import BuildError, ConfigError
from unit.builder.images import VIRT_BASE, elf, linux_notes, number


def load(folder: Path, notes: bytes | None = None) -> kernel.Kernel:
    path = folder / "vmlinux"
    path.write_bytes(elf(notes=notes))
    return kernel.load(path)


def test_too_little_memory_names_what_would_do(tmp_path: Path) -> None:
    image = load(tmp_path)
    with pytest.raises(ConfigError, match=r"memory: 16 MiB cannot hold kernel .*vmlinux; 29 MiB can") as caught:
        pv.check(image, None, memory_mib=16)
    assert caught.value.key == "memory"
    with pytest.raises(ConfigError):
        pv.check(image, None, memory_mib=28)
    pv.check(image, None, memory_mib=29)


def test_the_ramdisk_counts(tmp_path: Path) -> None:
    disk = tmp_path / "initrd"
    disk.write_bytes(bytes(5 << 20))
    ramdisk = pv.load_ramdisk(disk)
    with pytest.raises(ConfigError, match=r"a ramdisk of 5.0 MiB; 34 MiB can"):
        pv.check(load(tmp_path), ramdisk, memory_mib=29)
    pv.check(load(tmp_path), ramdisk, memory_mib=34)


def test_the_least_memory_that_is_named_does(tmp_path: Path) -> None:
    image = load(tmp_path, linux_notes(init_p2m=None, mod_start_pfn=None))
    least = next(mib for mib in range(1, 64) if _fits(image, mib))
    with pytest.raises(ConfigError, match=f"; {least} MiB can"):
        pv.check(image, None, memory_mib=least - 1)


def test_more_memory_than_the_m2p_can_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 262144 MiB"):
        pv.check(load(tmp_path), None, memory_mib=300 << 10)


def test_large_domains_need_more_p2m_tables(tmp_path: Path) -> None:
    image = load(tmp_path)
    small, large = (pv.check(image, None, memory_mib=mib) for mib in (64, 16 << 10))
    assert large.nr_p2m_frames - small.nr_p2m_frames > (16 << 10) // 2 - 64
    assert large.nr_tables == small.nr_tables


def test_p2m_over_the_kernel(tmp_path: Path) -> None:
    image = load(tmp_path, linux_notes(init_p2m=number(15, VIRT_BASE + 0x1000000)))
    with pytest.raises(BuildError, match="INIT_P2M"):
        pv.check(image, None, memory_mib=64)


def test_kernel_at_the_end_of_the_address_space(tmp_path: Path) -> None:
    base = (1 << 64) - 0x1880000
    image = load(tmp_path, linux_notes(virt_base=number(3, base), entry=number(1, base + 0x1000010)))
    with pytest.raises(BuildError, match="do not fit the addresses"):
        pv.check(image, None, memory_mib=64)


def test_command_lines(tmp_path: Path) -> None:
    image = load(tmp_path)
    pv.check(image, None, memory_mib=64, cmdline="x" * 1023)
    with pytest.raises(ConfigError, match="cmdline: 1024 bytes; at most 1023"):
        pv.check(image, None, memory_mib=64, cmdline="x" * 1024)
    with pytest.raises(ConfigError, match="NUL"):
        pv.check(image, None, memory_mib=64, cmdline="a\0b")


def _fits(image: kernel.Kernel, mib: int) -> bool:
    try:
        pv.check(image, None, memory_mib=mib)
    except ConfigError:
        return False
    return True
