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
from ring3.tools.devices import block_script, host_use
from ring3.tools.devices.bus import DeviceNodes
from ring3.tools.devices.disk_spec import DiskSpec
from ring3.tools.devices.image_lock import ImageBusyError, lock
from ring3.tools.rundir import RunDir

if TYPE_CHECKING:
    from ring3.libs.xenstore import XenstoreClient
    from ring3.tools.services import Services

KIND: Final = "vbd"


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk to attach."""

    spec: DiskSpec

    @classmethod
    def parse(cls, text: str) -> Disk:
        """Returns the disk of a specification. Raises ConfigError."""
        return cls(DiskSpec.parse(text))

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
        path = str(_host_path(spec.target)) if spec.target and spec.script is None else spec.target
        back = {
            "removable": "1" if spec.is_cdrom else "0",
            "bootable": "1",
            "dev": spec.vdev,
            "type": "phy" if spec.format in ("raw", "empty") else "qdisk",
            "mode": "r" if spec.is_read_only else "w",
            "device-type": kind,
            "params": path if spec.format in ("raw", "empty") else f"{spec.format}:{path}",
            "discard-enable": str(int(spec.has_discard and not spec.is_read_only)),
            "direct-io-safe": str(int(spec.is_direct_io_safe)),
        }
        front = {"virtual-device": str(spec.devid), "device-type": kind, "trusted": str(int(spec.is_trusted))}
        if spec.script is None:
            return DeviceNodes(KIND, spec.devid, front, back | {"physical-device-path": path})
        back["script"] = str(block_script.find(spec.vdev, spec.script))
        return DeviceNodes(KIND, spec.devid, front, back, self._run_script)

    def prepare(self, domid: int, services: Services) -> None:
        """Opens and locks the image, and leaves it to the supervisor. Raises ConfigError."""
        spec = self.spec
        device = Device(KIND, domid, spec.devid)
        if spec.format == "empty" or spec.script is not None:
            return
        if spec.format != "raw":
            from ring3.tools.devices import storage_daemon

            image = _host_path(spec.target)
            direct = self._open_direct(str(image)) if spec.is_direct_io_safe and image.is_file() else None
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
        self._give(_host_path(spec.target), device, services)

    def _run_script(self, xenstore: XenstoreClient, services: Services, device: Device) -> None:
        """Has the script make a device of the target, and leaves that to the supervisor. Raises Error."""
        place = RunDir(services.directory)
        place.scripts.touch()  # `ring3 down` looks for what is to be undone
        path = block_script.add(self.spec.vdev, device, xenstore, place.xenstore)
        self._give(Path(path), device, services)
        xenstore.write(f"{device.back}/physical-device-path", path)  # tells the back end that it is there

    def _give(self, path: Path, device: Device, services: Services) -> None:
        with contextlib.ExitStack() as opened:
            fds = [self._open(path)]
            opened.callback(os.close, fds[0])
            if self.spec.is_direct_io_safe:
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

    def _open(self, path: Path) -> int:
        spec = self.spec
        flags = (os.O_RDONLY if spec.is_read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
        if not spec.is_read_only and host_use.is_block_device(path):
            flags |= os.O_EXCL  # the host shall not mount it either, while a guest writes it
        try:
            fd = os.open(path, flags)
        except OSError as error:
            hint = ""
            if error.errno == errno.EBUSY:
                place = host_use.mounted_at(path.stat(), is_read_only=spec.is_read_only)
                used = f"has it mounted on {place}" if place is not None else "uses it"
                raise ConfigError(f"{spec.vdev}: {path} is busy: the host {used}", key="disk") from error
            if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM) and not spec.is_read_only:
                hint = " (access=ro attaches it read-only)"
            raise ConfigError(f"{spec.vdev}: {path}: {error.strerror}{hint}", key="disk") from error
        try:
            status = os.fstat(fd)
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
                raise ConfigError(f"{spec.vdev}: {path} is neither a file nor a block device", key="disk")
            if stat.S_ISREG(status.st_mode) and status.st_size < 512:
                raise ConfigError(f"{spec.vdev}: {path} is smaller than one sector", key="disk")
            place = host_use.mounted_at(status, is_read_only=spec.is_read_only)
            if place is not None:
                raise ConfigError(f"{spec.vdev}: {path} is busy: the host has it mounted on {place}", key="disk")
            os.set_blocking(fd, True)
            lock(fd, is_read_only=spec.is_read_only)
        except ImageBusyError as error:
            os.close(fd)
            other = "written by" if spec.is_read_only else "used by"
            raise ConfigError(f"{spec.vdev}: {path} is busy: {other} another domain or program", key="disk") from error
        except BaseException:
            os.close(fd)
            raise
        return fd


def _host_path(target: str) -> Path:
    """Returns what a target means: a path, as everywhere; or what /dev has of that name, as for xl, if it is none."""
    path = Path(target).absolute()
    device = Path("/dev", target)
    return device if host_use.is_there(device) and not host_use.is_there(path) else path
