"""Where images are: a directory for each, with `disk.img`, `vmlinuz`, `initrd.img` and `config`."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ring3.errors import ConfigError

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""As hostnames are."""


@dataclass(frozen=True, slots=True)
class Image:
    """One image."""

    path: Path

    @property
    def name(self) -> str:
        """Its name, which is the domain's and the host's in it, too."""
        return self.path.name

    @property
    def disk(self) -> Path:
        """The raw disk: a file system, no partitions."""
        return self.path / "disk.img"

    @property
    def kernel(self) -> Path:
        """The kernel that is installed in it."""
        return self.path / "vmlinuz"

    @property
    def ramdisk(self) -> Path:
        """Its initramfs."""
        return self.path / "initrd.img"

    @property
    def config(self) -> Path:
        """What `ring3 create` takes."""
        return self.path / "config"


def directory() -> Path:
    """Returns where images are: RING3_IMAGE_DIR, else below XDG_DATA_HOME or ~/.local/share."""
    return _place("RING3_IMAGE_DIR", "XDG_DATA_HOME", ".local/share") / "images"


def cache() -> Path:
    """Returns where root file systems are kept that images are made of: RING3_CACHE_DIR, XDG_CACHE_HOME or ~/.cache."""
    return _place("RING3_CACHE_DIR", "XDG_CACHE_HOME", ".cache")


def _place(own: str, standard: str, below_home: str) -> Path:
    if setting := os.environ.get(own):
        return Path(setting).absolute()
    base = os.environ.get(standard)
    return (Path(base) if base and base.startswith("/") else Path.home() / below_home) / "ring3"


def images() -> list[Image]:
    """Returns the images that there are, by name."""
    top = directory()
    found = sorted(top.iterdir()) if top.is_dir() else []
    return [Image(path) for path in found if _NAME.fullmatch(path.name) and (path / "config").is_file()]


def find(name: str) -> Image:
    """Returns an image. Raises ConfigError."""
    for image in images():
        if image.name == name:
            return image
    raise ConfigError(f"there is no image {name} (`ring3 image list` lists them)", key="image")


@contextmanager
def new(name: str) -> Iterator[Image]:
    """Yields an image to fill, which is there under its name at the end, and gone if that fails. Raises ConfigError."""
    if not _NAME.fullmatch(name) or name.isdigit():
        raise ConfigError(f"{name!r} is no name for an image (lower-case letters, digits, -)", key="image")
    target = directory() / name
    if target.exists():
        raise ConfigError(f"there is an image {name} already (`ring3 image rm {name}` removes it)", key="image")
    partial = directory() / f".{name}.{os.getpid()}"
    partial.mkdir(parents=True)
    try:
        yield Image(partial)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def remove(name: str) -> None:
    """Removes an image. Raises ConfigError: there is none, or a domain uses it."""
    from ring3.tools.devices.image_lock import ImageBusyError, lock

    image = find(name)
    with image.disk.open("rb+") as disk:
        try:
            lock(disk.fileno(), is_read_only=False)
        except ImageBusyError as error:
            raise ConfigError(f"image {name} is in use", key="image") from error
        shutil.rmtree(image.path)
