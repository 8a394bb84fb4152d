"""Every form of xl-disk-configuration(5), and what is none."""

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from ring3.errors import ConfigError
from ring3.tools.devices.disk import Disk
from ring3.tools.devices.disk_spec import DiskSpec, vdev_number
from ring3.tools.services import Services


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/dev/vg/guest-volume,raw,xvda,rw", DiskSpec("xvda", "/dev/vg/guest-volume")),
        ("/dev/vg/guest-volume,,hda", DiskSpec("hda", "/dev/vg/guest-volume")),
        ("format=raw, vdev=hda, access=rw, target=/dev/vg/guest", DiskSpec("hda", "/dev/vg/guest")),
        ("raw:/dev/vg/guest-volume,hda,w", DiskSpec("hda", "/dev/vg/guest-volume")),
        ("raw:/dev/vg/guest-volume,,hda,w", DiskSpec("hda", "/dev/vg/guest-volume")),
        ("/root/image.iso,,hdc,cdrom", DiskSpec("hdc", "/root/image.iso", is_read_only=True, is_cdrom=True)),
        ("/root/image.iso,,hdc,,cdrom", DiskSpec("hdc", "/root/image.iso", is_read_only=True, is_cdrom=True)),
        (",,hdc,,cdrom", DiskSpec("hdc", format="empty", is_read_only=True, is_cdrom=True)),
        ("devtype=cdrom,vdev=hdc", DiskSpec("hdc", format="empty", is_read_only=True, is_cdrom=True)),
        ("vdev=xvdb,target=/with,commas,in=it", DiskSpec("xvdb", "/with,commas,in=it")),
        ("phy:/dev/sdb,xvdb,r", DiskSpec("xvdb", "/dev/sdb", is_read_only=True)),
        ("file:/a.img,,sda1,ro", DiskSpec("sda1", "/a.img", is_read_only=True)),
        ("tap:aio:/a.img,,xvda,w", DiskSpec("xvda", "/a.img")),
        ("tap:qcow2:/a.img,vdev=xvda", DiskSpec("xvda", "/a.img", format="qcow2")),
        ("vhd:/a.vhd,,xvda,w", DiskSpec("xvda", "/a.vhd", format="vhd")),
        ("/a.img,,hdc:cdrom,r", DiskSpec("hdc", "/a.img", is_read_only=True, is_cdrom=True)),
        ("/a.qcow2,qcow2,xvda,no-discard", DiskSpec("xvda", "/a.qcow2", format="qcow2", has_discard=False)),
        ("/a,raw,xvda,w,direct-io-safe,discard", DiskSpec("xvda", "/a", is_direct_io_safe=True)),
        ("backendtype=qdisk,vdev=0xca10,/a", DiskSpec("0xca10", "/a", backend_type="qdisk")),
        ("iscsi:iqn.x:disk,,xvda,w", DiskSpec("xvda", "iqn.x:disk", script="block-iscsi")),
        (",hdc:cdrom,r", DiskSpec("hdc", format="empty", is_read_only=True, is_cdrom=True)),
        ("raw:/root/image.iso,hdc:cdrom,ro", DiskSpec("hdc", "/root/image.iso", is_read_only=True, is_cdrom=True)),
        ("vdev=xvda,,target=/a", DiskSpec("xvda", "/a")),
        ("/a,raw,xvda,untrusted", DiskSpec("xvda", "/a", is_trusted=False)),
        ("/a,raw,xvda,w,trusted,no-colo,specification=xen", DiskSpec("xvda", "/a")),
        ("nbd:host:10809,,xvda,w", DiskSpec("xvda", "host:10809", script="block-nbd")),
        ("script=block-drbd,vdev=xvda,target=x", DiskSpec("xvda", "x", script="block-drbd")),
    ],
)
def test_forms_of_a_disk(text: str, expected: DiskSpec) -> None:
    assert DiskSpec.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "vdev is missing"),
        ("/a,raw", "vdev is missing"),
        ("/a,raw,sdzzzz", "no virtual device"),
        ("/a,raw,sdz", "not so many"),
        ("/a,tar,xvda", "format is one of"),
        ("/a,raw,xvda,rx", "access is r, ro, w or rw"),
        (",raw,xvda", "target is missing"),
        ("/a,raw,xvda,w,more", "one word too many"),
        ("colour=red,vdev=xvda,target=/a", "colour is no parameter"),
        ("vdev=xvda,vdev=xvdb,target=/a", "vdev is given twice"),
        ("/a,raw,xvda,w,discard,no-discard", "both discard and no-discard"),
        ("weird:/a,raw,xvda,w", "weird: is no prefix"),
        ("/a,raw,xvda,devtype=tape", "devtype is disk or cdrom"),
        ("/a,raw,xvda,backendtype=magic", "backendtype is one of"),
        ("/a,raw,xvda,backend=driver-domain", "domain 0 serves all disks"),
        ("/a,raw,xvda,trusted,untrusted", "both trusted and untrusted"),
        ("/a,raw,xvda,specification=virtio", "virtio disks are not served"),
        ("/a,raw,xvda,backendtype=standalone", "virtio disks are not served"),
        ("/a,raw,xvda,specification=scsi", "specification is xen or virtio"),
        ("/a,qcow2,xvda,backendtype=phy", "backendtype phy goes with format raw alone"),
        ("/a,qcow2,xvda,script=block-x", "a script goes with format raw alone"),
        ("/a,raw,xvda,colo,colo-host=1.2.3.4", "there is no COLO here"),
        (",hdc:disk,w", "only a cdrom may be empty"),
    ],
)
def test_what_is_no_disk(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DiskSpec.parse(text)


def test_a_target_is_a_path_or_what_dev_has_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def path_of(target: str) -> str:
        return Disk.parse(f"{target},raw,xvda").nodes(1).back["params"]

    assert path_of("null") == "/dev/null"
    (tmp_path / "null").touch()
    assert path_of("null") == str(tmp_path / "null")
    assert path_of("x" * 300) == str(tmp_path / ("x" * 300)), "opening it says what is wrong"
    assert path_of("new.img") == str(tmp_path / "new.img"), "what neither has is missed where people look"


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("xvda", 51712), ("xvda1", 51713), ("xvdb", 51728), ("xvdp15", 51967), ("xvdq", 268439552),
        ("xvda16", 268435472),
        ("xvdaa", 268442112), ("d0", 51712), ("d1p2", 51730), ("hda", 768), ("hdb1", 833), ("hdc", 5632), ("hdd", 5696),
        ("sda", 2048), ("sdp15", 2303), ("0xca00", 51712), ("768", 768),
    ],
)  # fmt: skip
def test_virtual_device_numbers(name: str, number: int) -> None:
    assert vdev_number(name) == number


class _Given:
    """Counts the descriptors that a disk leaves to the supervisor."""

    nr_fds = 0

    def give(self, _name: str, fds: Sequence[int]) -> None:
        self.nr_fds = len(fds)


def _without_direct(path: Any, flags: int, *rest: Any, real: Callable[..., int] = os.open) -> int:
    if flags & os.O_DIRECT:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return real(path, flags, *rest)


def test_direct_io_is_used_where_it_is_safe_and_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    given = _Given()

    def prepare(flag: str) -> int:
        Disk.parse(f"{image},raw,xvda,rw{flag}").prepare(1, cast(Services, given))
        return given.nr_fds

    assert prepare("") == 1
    prepare(",direct-io-safe")
    assert capsys.readouterr().err == "" or given.nr_fds == 1
    monkeypatch.setattr(os, "open", _without_direct)
    assert prepare(",direct-io-safe") == 1
    assert capsys.readouterr().err == f"ring3: xvda: {image}: no O_DIRECT here: the page cache is used\n"
