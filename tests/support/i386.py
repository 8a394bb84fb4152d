"""32-bit programs for 64-bit guests: whether they can be made here, and Debian's i386 busybox."""

import os
import shutil
import subprocess
from pathlib import Path

from ring3.dev.initramfs import ArtefactError
from support import images


def compile_32bit(source: Path, output: Path, *flags: str) -> Path:
    """Compiles one C file to a static 32-bit program. Raises ArtefactError where the compiler cannot."""
    try:
        return images.compile_static(source, output, "-m32", "-no-pie", *flags)
    except subprocess.CalledProcessError as error:
        raise ArtefactError("gcc -m32 makes no static programs: install Debian's gcc-multilib") from error


def runs_here(program: Path) -> bool:
    """Whether the host executes 32-bit programs, and so can be compared with."""
    try:
        return subprocess.run([program], capture_output=True, timeout=60).returncode == 0
    except OSError:
        return False


def fetch_busybox(directory: Path) -> Path:
    """Returns Debian's static i386 busybox, downloaded into `directory` unless it is there. Raises ArtefactError.

    apt-get gets lists of its own that know i386: the machine's architectures are nobody's business here.
    """
    target = directory / "busybox-i386"
    if target.exists():
        return target
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise ArtefactError("apt-get is not on this machine, to download the i386 busybox")
    work = directory / f"download-busybox-{os.getpid()}"
    for made in ("lists/partial", "cache/archives/partial", "content"):
        (work / made).mkdir(parents=True)
    config = work / "apt.conf"
    config.write_text(
        'APT::Architectures { "amd64"; "i386"; };\nAPT::Sandbox::User "";\n'
        f'Dir::State::Lists "{work}/lists";\nDir::Cache "{work}/cache";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(config)}
    try:
        # Errors of single index files do not matter; those of the download do.
        subprocess.run(["apt-get", "-qq", "update"], env=environment, check=False, capture_output=True)
        download = ["apt-get", "-qq", "download", "busybox-static:i386"]
        subprocess.run(download, env=environment, cwd=work, check=True, capture_output=True)
        (package,) = work.glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", package, work / "content"], check=True)
        (work / "content" / "bin" / "busybox").replace(target)
    except (subprocess.CalledProcessError, ValueError, OSError) as error:
        raise ArtefactError(f"no i386 busybox from apt-get: {error}") from error
    finally:
        shutil.rmtree(work)
    return target
