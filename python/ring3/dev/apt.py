"""apt with the machine's own sources, or with another suite of Debian's: the machine's settings stay as they are."""

import fcntl
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ring3.dev.initramfs import ArtefactError

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_MIRROR = "http://deb.debian.org/debian/"


@dataclass(frozen=True)
class Apt:
    """Options that say which lists are looked at."""

    options: tuple[str, ...] = ()

    def __call__(self, tool: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs apt-get or apt-cache; what it says is returned, not printed."""
        return subprocess.run([tool, *self.options, *arguments], cwd=cwd, capture_output=True, text=True)

    def refresh(self) -> None:
        """Renews the lists, where that is allowed."""
        if self.options or os.geteuid() == 0:
            self("apt-get", "-qq", "update")


HOST = Apt()
"""The machine's own."""


def mirror() -> str:
    """Returns the mirror that this machine takes Debian from."""
    done = HOST("apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages")
    for line in done.stdout.splitlines():
        uri, _, label = line.partition(" ")
        if label == "Debian":
            return uri
    return _MIRROR


def suite(directory: Path, name: str) -> Apt:
    """Returns apt for one suite of Debian's, with lists in `directory`, fetched unless they are there.

    Raises ArtefactError.
    """
    if shutil.which("apt-get") is None or not _KEYRING.exists():
        raise ArtefactError(f"apt-get or {_KEYRING.name} is not on this machine, and {name} comes from Debian")
    lists = directory / f"apt-{name}"
    for part in ("lists/partial", "cache/archives/partial"):
        (lists / part).mkdir(parents=True, exist_ok=True)
    sources = lists / "sources.list"
    uri = mirror()
    text = f"deb [signed-by={_KEYRING}] {uri} {name} main\n"
    if not name.endswith("-backports") and name not in ("sid", "experimental"):
        security = uri.rstrip("/") + "-security/"
        text += f"deb [signed-by={_KEYRING}] {security} {name}-security main\n"
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": lists / "lists",
        "Dir::Cache": lists / "cache",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    found = Apt(tuple(word for key, value in settings.items() for word in ("-o", f"{key}={value}")))
    with (lists / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not sources.exists() or sources.read_text() != text:
            sources.with_suffix(".part").write_text(text)
            sources.with_suffix(".part").replace(sources)
            done = found("apt-get", "-qq", "update")
            if done.returncode != 0:
                sources.unlink()
                raise ArtefactError(f"no lists of {name}: {done.stderr.strip()[-300:]}")
    return found
