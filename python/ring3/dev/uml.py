"""Gets Debian's User-Mode Linux, which the benchmark compares with, without installing it."""

from pathlib import Path

from ring3.dev import debian
from ring3.dev.initramfs import ArtefactError

_PACKAGE = "user-mode-linux"
_PROGRAM = "usr/bin/linux.uml"


def fetch(directory: Path) -> Path:
    """Returns the program, downloaded into `directory` unless it is there. Raises ArtefactError."""
    target = directory / "linux.uml"
    if target.exists():
        return target
    if not debian.has_apt():
        raise ArtefactError(f"apt-get is not on this machine, and {_PACKAGE} comes from Debian")
    print(f"downloading {_PACKAGE} ...", flush=True)
    package = debian.download(directory, _PACKAGE)
    content = next((data for path, data in debian.members(package) if path == _PROGRAM), None)
    if content is None:
        raise ArtefactError(f"{_PACKAGE} has no {_PROGRAM}")
    partial = directory / "linux.uml.part"
    partial.write_bytes(content)
    partial.chmod(0o755)
    package.unlink()
    return partial.replace(target)
