"""Initramfs images that carry the tests' own scripts and programs."""

import subprocess
from pathlib import Path

from ring3.dev import initramfs

_HERE = Path(__file__).parent
EXERCISE = _HERE / "c" / "exercise.c"

SCRIPT = """\
set -e
uname -a
cat /sys/hypervisor/type
grep -c ^processor /proc/cpuinfo
mkdir /tmp/work && cd /tmp/work
i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done > lines
[ "$(wc -l < lines)" = 200 ]
[ "$(grep -c 7 lines)" = 38 ]
[ "$(sort -r lines | head -1)" = "line 99" ]
[ "$(seq 1 1000 | awk '{s+=$1} END {print s}')" = 500500 ]
dd if=/dev/zero of=zeros bs=64k count=16 2>/dev/null
[ "$(sha256sum < zeros)" = "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58  -" ]
gzip -c zeros | gunzip -c | cmp - zeros
tar cf - lines zeros | tar tf - | grep -q zeros
(sleep 0.1; echo slept) &
wait
for n in 1 2 3 4; do (i=0; while [ $i -lt 300 ]; do i=$((i+1)); done; echo job $n) & done; wait
[ "$(echo 'abc' | sed s/b/x/ | tr a-c A-C)" = AxC ]
ps | grep -q init
echo BUSYBOX-OK
/test/exercise
echo SCRIPT-OK
"""
"""A script of busybox commands, each of which must give the right answer."""


def compile_static(source: Path, output: Path, *flags: str) -> Path:
    """Compiles one C file to a static program. Raises CalledProcessError."""
    subprocess.run(["gcc", "-O2", "-static", *flags, "-o", output, source, "-lm"], check=True)
    return output


def output_of(program: Path) -> str:
    """Runs a program on the host and returns what it prints."""
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout


def build_exercise(cache: Path, build_directory: Path) -> Path:
    """Returns an initramfs whose /test/script runs busybox commands and the C program."""
    program = compile_static(EXERCISE, build_directory / "exercise", "-pthread")
    files = {"test/script": SCRIPT.encode(), "test/exercise": program.read_bytes()}
    return initramfs.build(cache, "exercise", files)
