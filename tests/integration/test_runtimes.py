"""Programs that write their own code run right in a guest: Node.js, LuaJIT and Java from Debian, and gcc and Python.

What they must print was taken from the same packages on the host's CPU.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest

from ring3.dev import debian_root
from ring3.dev.initramfs import ArtefactError
from support import images
from support.command import Finished, Ring3

pytestmark = [pytest.mark.guest, pytest.mark.stock]

_SUPPORT = Path(images.__file__).parent
_BENCH = _SUPPORT.parent.parent / "bench" / "guest"

_SCRIPT = """\
export PATH=/usr/bin:/usr/sbin
mount -t tmpfs tmpfs /dev/shm
node /bench/loop.js | cat
luajit /bench/loop.lua
python3 -c 'print("python", sum(hash(x) % 7 for x in range(100000)))'
gcc -O2 -pthread -o /tmp/compiled /bench/exercise.c -lm && /tmp/compiled
"""

_JAVA_SCRIPT = """\
mount -t tmpfs tmpfs /dev/shm
/usr/lib/jvm/java-17-openjdk-amd64/bin/java /bench/Loop.java
"""


def _run(
    ring3: Ring3, cache: Path, kernel: Path, directory: Path, packages: Sequence[str], files: dict[str, bytes]
) -> Finished:
    try:
        ramdisk = debian_root.image(cache, directory / "root.cpio", packages, files)
    except ArtefactError as error:
        pytest.skip(str(error))
    command = ["run", "--kernel", str(kernel), "--ramdisk", str(ramdisk), "--memory", "1536"]
    done = ring3(*command, "--cmdline", "console=hvc0 quiet ring3.run=/bench/script", timeout_s=800)
    ramdisk.unlink()
    assert done.exit_code == 0, done.describe()
    return done


@pytest.mark.timeout(300)
def test_node_luajit_python_and_gcc(ring3: Ring3, guest_cache: Path, cloud_kernel: Path, tmp_path: Path) -> None:
    packages = ["python3-minimal", "nodejs", "gcc", "libc6-dev", "luajit", "dash"]
    files = {f"bench/{name}": (_BENCH / name).read_bytes() for name in ("loop.js", "loop.lua")}
    files["bench/exercise.c"] = (_SUPPORT / "c" / "exercise.c").read_bytes()
    files["bench/script"] = _SCRIPT.encode()
    done = _run(ring3, guest_cache, cloud_kernel, tmp_path, packages, files)
    for text in (
        "78498 6502000.000000 1648114245 w0,100,w1001,100,w1005,100 1161",
        "19 1,1.4142135623730951,1.7320508075688772",
        "78498\t1.070796035\t-1207410683\t670313845505410432ULL\t493335",
        "python 299995",
        "EXERCISE-OK",
    ):
        assert text in done.stdout, f"no {text}: {done.describe()}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_java(ring3: Ring3, guest_cache: Path, cloud_kernel: Path, tmp_path: Path) -> None:
    """Java compiles the program, in Java, and runs it."""
    files = {
        "bench/Loop.java": (_SUPPORT / "java" / "Loop.java").read_bytes(),
        "bench/script": _JAVA_SCRIPT.encode(),
    }
    done = _run(ring3, guest_cache, cloud_kernel, tmp_path, ["openjdk-17-jdk-headless", "dash"], files)
    text = "78498 1.00635E7 1009/198 300000 4423 -1901852915 -1363189111 1018793812 1431094305"
    assert text in done.stdout, done.describe()
