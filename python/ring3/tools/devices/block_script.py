"""Block scripts (`script=` in a disk's configuration): programs of the host that make a block device of a target.

They are called as libxl calls them, so that those of /etc/xen/scripts serve: with "add" before the disk is used and
with "remove" afterwards, the back end's node in XENBUS_PATH. What the script writes there says what came of it.

Source: xl-disk-configuration(5); docs/misc/block-scripts.txt of Xen; libxl_linux.c (behaviour).
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ring3.errors import ConfigError, Error

if TYPE_CHECKING:
    from ring3.libs.device import Device
    from ring3.libs.xenstore import XenstoreClient

_DIRECTORY: Final = Path("/etc/xen/scripts")
_TIMEOUT_S: Final = 40.0
"""Source: libxl_internal.h, LIBXL_HOTPLUG_TIMEOUT."""
_HOME: Final = "/local/domain/0/"
_NUMBERS: Final = re.compile(r"([0-9a-f]{1,5}):([0-9a-f]{1,5})")


def find(vdev: str, script: str) -> Path:
    """Returns the program that a configuration means. Raises ConfigError where there is none."""
    path = Path(script).absolute() if "/" in script else _DIRECTORY / script
    if not path.is_file():
        raise ConfigError(f"{vdev}: {path}: there is no such script", key="disk")
    if not os.access(path, os.X_OK):
        raise ConfigError(f"{vdev}: {path} is not executable", key="disk")
    return path


def run(script: str, action: str, device: Device, xenstore_path: Path) -> str | None:
    """Runs a script to its end. Returns what it said of its failure, None where it did not fail."""
    environment = os.environ | {
        "script": script,
        "XENBUS_TYPE": device.kind,
        "XENBUS_PATH": device.back.removeprefix(_HOME),
        "XENBUS_BASE_PATH": "backend",
        "XENSTORED_PATH": str(xenstore_path),
    }
    try:
        done = subprocess.run(
            [script, action],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it has not ended after {_TIMEOUT_S:.0f} s"
    except OSError as error:
        return str(error.strerror)
    if done.returncode == 0:
        return None
    said = done.stdout.decode(errors="replace").strip().splitlines()
    return said[-1] if said else f"it ended with code {done.returncode}"


def add(vdev: str, device: Device, xenstore: XenstoreClient, xenstore_path: Path) -> str:
    """Runs a disk's script and returns the device (or file) that it has made. Raises Error."""
    script = xenstore.read(f"{device.back}/script").decode()
    failure = run(script, "add", device, xenstore_path)
    status = xenstore.read_optional(f"{device.back}/hotplug-status")
    if failure is not None or status in ("error", "busy"):
        reason = xenstore.read_optional(f"{device.back}/hotplug-error") or failure
        raise Error(f"{vdev}: {script}: {reason or 'no reason given'}")
    path = xenstore.read_optional(f"{device.back}/physical-device-path")
    if path:
        return path
    numbers = _NUMBERS.fullmatch(xenstore.read_optional(f"{device.back}/physical-device") or "")
    if numbers is None:
        raise Error(f"{vdev}: {script}: it has named no device")
    return f"/dev/block/{int(numbers[1], 16)}:{int(numbers[2], 16)}"
