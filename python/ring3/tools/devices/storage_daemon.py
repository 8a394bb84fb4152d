"""Images of other formats than raw: QEMU's storage daemon reads them, for the block service. See docs/design/0009.

The daemon runs with the user's rights and opens the image itself, and what that is based on; it sets the locks that
`image_lock` does for raw images.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ring3.errors import ConfigError
from ring3.libs.device import Device
from ring3.tools.devices import host_use

if TYPE_CHECKING:
    from ring3.tools.services import Services

_PROGRAM: Final = "qemu-storage-daemon"
_DRIVERS: Final = {"vhd": "vpc"}
"""xl's word to QEMU's, where they differ."""
_CHECK_TIMEOUT_S: Final = 20.0
_EXPORT: Final = "type=nbd,id=disk,node-name=disk,name=disk,writable="


def serve(
    vdev: str,
    image: Path,
    image_format: str,
    device: Device,
    services: Services,
    *,
    writable: bool,
    is_direct: bool,
) -> None:
    """Has a daemon serve an image on the socket that the block service will look for. Raises ConfigError."""
    program = shutil.which(_PROGRAM)
    if program is None:
        raise ConfigError(
            f"{vdev}: images of format {image_format} need {_PROGRAM} (Debian: qemu-system-common)", key="disk"
        )
    # An image that lies in a block device, such as a logical volume, is opened by another of QEMU's drivers.
    protocol = "host_device" if host_use.is_block_device(image) else "file"
    node = {
        "driver": _DRIVERS.get(image_format, image_format),
        "node-name": "disk",
        "read-only": not writable,
        "discard": "unmap",
        "cache": {"direct": is_direct},
        "file": {"driver": protocol, "filename": str(image), "discard": "unmap", "cache": {"direct": is_direct}},
    }
    command = [program, "--blockdev", json.dumps(node)]
    _check(vdev, image, command)
    path = services.directory / "block" / f"{device.domid}-{device.number}.nbd"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
        command += ["--nbd-server", "addr.type=fd,addr.str=3", "--export", f"{_EXPORT}{'on' if writable else 'off'}"]
        services.run(device.name, command, [listener.fileno()])


def _check(vdev: str, image: Path, command: list[str]) -> None:
    """Opens the image once, so that the user learns what is wrong with it."""
    done = subprocess.run(
        [*command, "--chardev", "stdio,id=control", "--monitor", "chardev=control"],
        input='{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n',
        capture_output=True,
        text=True,
        timeout=_CHECK_TIMEOUT_S,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["it cannot be opened"])[0]
        reason = reason.removeprefix(f"{_PROGRAM}: ").removeprefix(f"{command[1]} {command[2]}: ")
        busy = " is busy" if reason.startswith("Failed to get ") else ""
        raise ConfigError(f"{vdev}: {image}{busy}: {reason}", key="disk")
