"""Disks: opening what one is made of, and its nodes as libxl writes them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ring3.errors import ConfigError
from ring3.libs.device import Device
from ring3.tools.devices.bus import DeviceNodes
from ring3.tools.devices.disk_spec import DiskSpec
from ring3.tools.devices.image_lock import ImageBusyError, lock

if TYPE_CHECKING:
    from ring3.tools.services import Services

KIND: Final = "vbd"


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk to attach."""

    spec: DiskSpec

    @classmethod
    def parse(cls, text: str) -> Disk:
        """Returns the disk of a specification. Raises ConfigError."""
        spec = DiskSpec.parse(text)
        if spec.script is not None:
            raise ConfigError(
                f"{spec.vdev}: block scripts ({spec.script}) are not run: attach it on the host and name the device",
                key="disk",
            )
        return cls(spec)

    @property
    def service(self) -> str:
        """The service of domain 0 that is its back end."""
        return "block"

    @property
    def has_hotplug(self) -> bool:
        """The back end says when it has the image."""
        return True

    def nodes(self, domid: int) -> DeviceNodes:  # noqa: ARG002
        """Returns its nodes. Source: libxl_disk.c, device_disk_add()."""
        spec = self.spec
        kind = "cdrom" if spec.is_cdrom else "disk"
        path = str(Path(spec.target).absolute()) if spec.target else ""
        back = {
            "removable": "1" if spec.is_cdrom else "0",
            "bootable": "1",
            "dev": spec.vdev,
            "type": "phy" if spec.format in ("raw", "empty") else "qdisk",
            "mode": "r" if spec.is_read_only else "w",
            "device-type": kind,
            "params": path if spec.format in ("raw", "empty") else f"{spec.format}:{path}",
            "physical-device-path": path,
            "discard-enable": str(int(spec.has_discard and not spec.is_read_only)),
            "direct-io-safe": str(int(spec.is_direct_io_safe)),
        }
        return DeviceNodes(KIND, spec.devid, {"virtual-device": str(spec.devid), "device-type": kind}, back)

    def prepare(self, domid: int, services: Services) -> None:
        """Opens and locks the image, and leaves it to the supervisor. Raises ConfigError."""
        spec = self.spec
        device = Device(KIND, domid, spec.devid)
        if spec.format == "empty":
            return
        if spec.format != "raw":
            from ring3.tools.devices import storage_daemon

            image = Path(spec.target).absolute()
            direct = self._open_direct(spec.target) if spec.is_direct_io_safe and image.is_file() else None
            if direct is not None:
                os.close(direct)
            storage_daemon.serve(
                spec.vdev,
                image,
                spec.format,
                device,
                services,
                writable=not spec.is_read_only,
                is_direct=direct is not None,
            )
            return
        with contextlib.ExitStack() as opened:
            fds = [self._open()]
            opened.callback(os.close, fds[0])
            if spec.is_direct_io_safe:
                direct = self._open_direct(f"/proc/self/fd/{fds[0]}")
                if direct is not None:
                    fds.append(direct)
                    opened.callback(os.close, direct)
            services.give(device.name, fds)

    def _open_direct(self, path: str) -> int | None:
        """Returns a descriptor past the page cache; None where the file system has no such thing."""
        access = os.O_RDONLY if self.spec.is_read_only else os.O_RDWR
        try:
            return os.open(path, access | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise ConfigError(f"{self.spec.vdev}: {self.spec.target}: {error.strerror}", key="disk") from error
        print(f"ring3: {self.spec.vdev}: {self.spec.target}: no O_DIRECT here: the page cache is used", file=sys.stderr)
        return None

    def _open(self) -> int:
        spec = self.spec
        try:
            fd = os.open(spec.target, (os.O_RDONLY if spec.is_read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            hint = ""
            if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM) and not spec.is_read_only:
                hint = " (access=ro attaches it read-only)"
            raise ConfigError(f"{spec.vdev}: {spec.target}: {error.strerror}{hint}", key="disk") from error
        try:
            status = os.fstat(fd)
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
                raise ConfigError(f"{spec.vdev}: {spec.target} is neither a file nor a block device", key="disk")
            if stat.S_ISREG(status.st_mode) and status.st_size < 512:
                raise ConfigError(f"{spec.vdev}: {spec.target} is smaller than one sector", key="disk")
            os.set_blocking(fd, True)
            lock(fd, is_read_only=spec.is_read_only)
        except ImageBusyError as error:
            os.close(fd)
            other = "written by" if spec.is_read_only else "used by"
            raise ConfigError(
                f"{spec.vdev}: {spec.target} is busy: {other} another domain or program", key="disk"
            ) from error
        except BaseException:
            os.close(fd)
            raise
        return fd
