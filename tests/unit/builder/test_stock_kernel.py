"""Debian's kernels, built against a double of the hypervisor and looked at through their own page tables."""

from pathlib import Path

import pytest

from ring3.builder import kernel, pv
from ring3.libs import domctl
from ring3.libs.connection import Connection
from unit.builder.verifier import Guest
from unit.libs.fake_hypervisor import FakeHypervisor

pytestmark = pytest.mark.stock


@pytest.mark.parametrize("name", ["cloud_kernel", "main_kernel"])
def test_a_stock_kernel_is_laid_out(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path: Path = request.getfixturevalue(name)
    hypervisor = FakeHypervisor(tmp_path / "stock", nr_frames=1 << 18)
    disk = tmp_path / "initrd"
    disk.write_bytes(bytes(range(251)) * 5000)
    with Connection.connect(hypervisor.path) as conn:
        domid = domctl.createdomain(conn, max_vcpus=1)
        domctl.max_mem(conn, domid, 512 << 10)
        image = kernel.load(path)
        ports = {"store_evtchn": 1, "console_evtchn": 2}
        with pv.build(conn, domid, image, memory_mib=512, ramdisk=pv.load_ramdisk(disk), **ports) as built:
            pass
    guest = Guest(hypervisor.memfd, hypervisor.domains[domid].contexts[0])
    info = guest.start_info()
    assert image.notes.guest_os == "linux"
    assert guest.p2m() == list(built.p2m)
    assert not any(writable for _, writable in guest.mapped_tables())
    assert len(list(guest.mapped_tables())) == info.nr_pt_frames
    for segment in image.elf.segments:
        start = segment.paddr + 0xFFFFFFFF80000000
        contents = bytes(image.elf.data[segment.offset : segment.offset + segment.nr_file_bytes])
        assert guest.read(start, segment.nr_bytes) == contents.ljust(segment.nr_bytes, b"\0")
    assert info.mod_len == disk.stat().st_size
    hypervisor.close()
