"""Kernel images: every compression, and every way to be no kernel."""

import io
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ring3.builder import kernel, payload, pv
from ring3.builder.kernel import Kernel
from ring3.errors import BuildError, ConfigError
from unit.builder import images
from unit.builder.images import VIRT_BASE, bzimage, elf, linux_notes, note, number

SMALL_ELF = elf()


def load(folder: Path, image: bytes) -> Kernel:
    path = folder / "vmlinuz"
    path.write_bytes(image)
    return kernel.load(path)


def refusal(folder: Path, image: bytes) -> str:
    with pytest.raises(BuildError) as caught:
        load(folder, image)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'vmlinuz'}: ")
    assert caught.value.file == folder / "vmlinuz"
    return message


@pytest.mark.parametrize("kind", images.COMPRESSORS)
def test_every_compression(tmp_path: Path, kind: str) -> None:
    image = images.compressed_kernel(kind, SMALL_ELF)
    if image is None:
        pytest.skip("the tool lzop is missing")
    assert bytes(load(tmp_path, image).elf.data) == SMALL_ELF
    assert bytes(load(tmp_path, image).elf.data) == SMALL_ELF, "from the cache"


def test_an_uncompressed_payload(tmp_path: Path) -> None:
    assert load(tmp_path, bzimage(SMALL_ELF)).notes.entry == VIRT_BASE + 0x1000010


def test_several_lz4_blocks(tmp_path: Path) -> None:
    big = elf([(0x1000000, bytes(range(251)) * 40000, 251 * 40000)])
    assert len(big) > images.LZ4_BLOCK_BYTES
    image = images.compressed_kernel("lz4", big)
    assert image is not None
    assert bytes(load(tmp_path, image).elf.data) == big


def test_a_gzipped_elf_file(tmp_path: Path) -> None:
    packed = images.COMPRESSORS["gzip"](SMALL_ELF)
    assert packed is not None
    assert bytes(load(tmp_path, packed).elf.data) == SMALL_ELF
    assert "ends early" in refusal(tmp_path, packed[:-20])
    not_elf = images.COMPRESSORS["gzip"](b"text" * 100)
    assert not_elf is not None
    assert "no ELF file" in refusal(tmp_path, not_elf)


def test_the_parser_agrees_with_pyelftools(tmp_path: Path) -> None:
    ours = load(tmp_path, SMALL_ELF).elf
    theirs = ELFFile(io.BytesIO(SMALL_ELF))
    loads = [s.header for s in theirs.iter_segments() if s["p_type"] == "PT_LOAD"]
    assert [(s.paddr, s.offset, s.nr_file_bytes, s.nr_bytes) for s in ours.segments] == [
        (s.p_paddr, s.p_offset, s.p_filesz, s.p_memsz) for s in loads
    ]
    notes = [n for s in theirs.iter_segments() if isinstance(s, NoteSegment) for n in s.iter_notes()]
    assert [("Xen", len(n.desc)) for n in ours.notes] == [(n["n_name"], n["n_descsz"]) for n in notes]


def test_notes_of_linux(tmp_path: Path) -> None:
    notes = load(tmp_path, SMALL_ELF).notes
    assert (notes.virt_base, notes.init_p2m, notes.mod_start_pfn) == (VIRT_BASE, images.INIT_P2M, True)
    assert notes.guest_os == "linux"
    assert notes.required_features == {"writable_page_tables"}
    assert notes.hypercall_page is None


@pytest.mark.parametrize("junk", [b"#!/bin/sh\necho\n", b"\0" * 5000, b"\x7fEL", b"MZ" + b"\xff" * 1000, b"x"])
def test_not_a_kernel(tmp_path: Path, junk: bytes) -> None:
    assert "not a kernel" in refusal(tmp_path, junk)


def test_no_file_an_empty_file_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        kernel.load(tmp_path / "missing")
    with pytest.raises(ConfigError, match="empty"):
        load(tmp_path, b"")
    with pytest.raises(ConfigError, match=r"cannot be read|regular"):
        kernel.load(tmp_path)
    with pytest.raises(ConfigError, match=r"initrd: the ramdisk cannot be read: No such file"):
        pv.load_ramdisk(tmp_path / "initrd")


def test_a_kernel_without_notes_names_note_and_package(tmp_path: Path) -> None:
    message = refusal(tmp_path, elf(notes=note(3, b"build", b"GNU\0")))
    assert "ENTRY" in message
    assert "linux-image-cloud-amd64" in message
    assert "linux-image-amd64" in message


def test_a_pvh_kernel_is_told_apart(tmp_path: Path) -> None:
    assert "PVH only" in refusal(tmp_path, elf(notes=linux_notes(entry=None, pvh=number(18, 0x1000000))))


def test_a_32_bit_kernel(tmp_path: Path) -> None:
    assert "32-bit" in refusal(tmp_path, elf(elf_class=1, machine=3))
    assert "machine 183" in refusal(tmp_path, elf(machine=183))


def test_an_old_boot_protocol(tmp_path: Path) -> None:
    assert "2.06" in refusal(tmp_path, bzimage(SMALL_ELF, version=0x206))


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        ([(0x1000000, b"x" * 100, 0x2000), (0x1001000, b"y", 1)], "overlap"),
        ([(0x1000000, b"x" * 100, 50)], "more bytes in the file"),
        ([((1 << 64) - 4096, b"x", 8192)], "wraps"),
        ([(1 << 50, b"x", 1)], "VIRT_BASE"),
        ([(0x1000000, b"", 0)], "nothing to load"),
    ],
)
def test_wild_segments(tmp_path: Path, segments: list[tuple[int, bytes, int]], reason: str) -> None:
    assert reason in refusal(tmp_path, elf(segments))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"entry": number(1, 0x1234)}, "ENTRY 0x1234"),
        ({"entry": note(1, b"abc")}, "ENTRY has 3 bytes"),
        ({"virt_base": number(3, VIRT_BASE + 1)}, "VIRT_BASE"),
        ({"virt_base": number(3, 0xFFFF800000000000), "entry": number(1, 0xFFFF800001000010)}, "VIRT_BASE"),
        ({"virt_base": number(3, 0x0001000000000000)}, "VIRT_BASE"),
        ({"virt_base": number(3, (1 << 64) - 4096)}, "VIRT_BASE"),
        ({"paddr_offset": number(4, 0x2000000)}, "PADDR_OFFSET"),
        ({"hypercall_page": number(2, 0x1000)}, "HYPERCALL_PAGE"),
        ({"init_p2m": number(15, 0xFFFF800000000000)}, "INIT_P2M"),
        ({"init_p2m": number(15, 0x8000000001)}, "INIT_P2M"),
        ({"hv_start_low": number(12, 0xFFFF900000000000)}, "HV_START_LOW"),
        ({"xen_version": note(5, b"xen-2.0\0")}, "XEN_VERSION"),
        ({"loader": note(8, b"special\0")}, "LOADER"),
        ({"features": note(10, b"!auto_translated_physmap")}, "auto_translated_physmap"),
        ({"features": note(10, b"!telepathy")}, "telepathy"),
        ({"torn": b"\x04\0\0\0\xff\xff\0\0\x01\0\0\0Xen\0"}, "beyond its segment"),
    ],
)
def test_nonsense_in_notes(tmp_path: Path, changes: dict[str, bytes], reason: str) -> None:
    assert reason in refusal(tmp_path, elf(notes=linux_notes(**changes)))


@pytest.mark.parametrize("kind", images.COMPRESSORS)
def test_an_image_cut_anywhere_is_refused(tmp_path: Path, kind: str) -> None:
    image = images.compressed_kernel(kind, SMALL_ELF)
    if image is None:
        pytest.skip("the tool lzop is missing")
    whole = len(image) - 50  # after the payload, the image may end anywhere
    for length in [*range(1, 0x260, 13), *range(0x260, whole, max(1, whole // 97)), whole - 1]:
        refusal(tmp_path, image[:length])


def test_an_elf_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    for length in [*range(1, 300), *range(300, len(SMALL_ELF), 97), len(SMALL_ELF) - 1]:
        refusal(tmp_path, SMALL_ELF[:length])


@pytest.mark.parametrize("kind", images.COMPRESSORS)
def test_a_payload_of_another_size_than_promised(kind: str) -> None:
    data = b"kernel" * 1000
    packed = images.COMPRESSORS[kind](data)
    if packed is None:
        pytest.skip("the tool lzop is missing")
    for size in (0, 1, len(data) - 1, len(data) + 1, payload.MAX_IMAGE_BYTES + 1):
        with pytest.raises(payload.PayloadError):
            payload.decompress(memoryview(packed), size)
    assert payload.decompress(memoryview(packed), len(data)) == data


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_images_are_refused_or_loaded_but_never_break_the_loader(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([None, "lzo", "lz4", "gzip"]))
    image = SMALL_ELF if kind is None else images.compressed_kernel(kind, SMALL_ELF)
    if image is None:
        return
    damaged = bytearray(image)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(damaged) - 1) | st.integers(0, 0x260 if kind else 240))
        damaged[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "vmlinuz"
    path.write_bytes(damaged)
    try:
        loaded = kernel.load(path, use_cache=False)
        pv.check(loaded, None, memory_mib=64)
    except (BuildError, ConfigError) as error:
        assert str(path) in str(error)
