"""Kernels and modules out of Debian's packages: in one until Debian 13, in three later, modules packed by xz."""

import lzma
from pathlib import Path

import pytest

from ring3.dev import debian, kernel, modules
from ring3.dev.initramfs import ArtefactError

RELEASE = "7.2.13+deb14-cloud-amd64"
MODULE = b"\x7fELF\0depends=other_one\0"
OTHER = b"\x7fELF\0depends=\0"


def bzimage(release: str) -> bytes:
    """What `modules.release` reads of one."""
    return bytes(0x20E) + (0x100).to_bytes(2, "little") + bytes(0xF0) + release.encode() + b" (maker)\0"


@pytest.fixture(params=["one package", "three packages"])
def archive(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Debian whose kernel is packaged in either way."""
    image, binary, tree = (f"linux-{part}-{RELEASE}" for part in ("image", "binary", "modules"))
    vmlinuz = bzimage(RELEASE)
    if request.param == "one package":
        packages = {
            image: {
                f"boot/vmlinuz-{RELEASE}": vmlinuz,
                f"lib/modules/{RELEASE}/kernel/xen-one.ko": MODULE,
                f"lib/modules/{RELEASE}/kernel/other-one.ko": OTHER,
            }
        }
        needs = ["linux-base"]
    else:
        packages = {
            image: {},
            binary: {f"usr/lib/modules/{RELEASE}/vmlinuz": vmlinuz},
            tree: {
                f"usr/lib/modules/{RELEASE}/kernel/xen-one.ko.xz": lzma.compress(MODULE),
                f"usr/lib/modules/{RELEASE}/kernel/other-one.ko.xz": lzma.compress(OTHER),
            },
        }
        needs = ["linux-base", binary, tree]

    def depends(package: str, _apt: object) -> list[str]:
        return [image] if package == "linux-image-cloud-amd64" else needs

    def download(directory: Path, package: str, _apt: object) -> Path:
        (directory / package).touch()
        return directory / package

    monkeypatch.setattr(debian, "has_apt", lambda: True)
    monkeypatch.setattr(debian, "depends", depends)
    monkeypatch.setattr(debian, "download", download)
    monkeypatch.setattr(debian, "members", lambda package: iter(packages[package.name].items()))


@pytest.mark.usefixtures("archive")
def test_a_kernel_and_its_modules_are_found(tmp_path: Path) -> None:
    image = kernel.fetch(tmp_path, "cloud")
    assert modules.release(image) == RELEASE
    assert [path.name for path in tmp_path.iterdir()] == ["vmlinuz-cloud"], "packages are not kept"
    found = modules.files(tmp_path, image, ["xen_one"])
    assert found == {"lib/modules/00-other_one.ko": OTHER, "lib/modules/01-xen_one.ko": MODULE}
    with pytest.raises(ArtefactError, match="no module absent"):
        modules.files(tmp_path, image, ["absent"])
