"""Boots each small guest of tests/guests and compares its end with what its opening comment expects."""

import re
from pathlib import Path

import pytest

from support import guests
from support.command import Ring3

pytestmark = pytest.mark.guest


@pytest.mark.parametrize(
    ("mode", "text"), [("always_emulate", "TSC mode 1, emulated"), ("native", "TSC mode 2, native")]
)
@pytest.mark.parametrize("name", ["tsc", "clock"])
def test_tsc_modes(name: str, mode: str, text: str, ring3: Ring3, tmp_path: Path) -> None:
    image = guests.build(name, tmp_path)
    done = ring3("run", "--kernel", image, "--memory", "16", "--tsc-mode", mode, timeout_s=60)
    assert "VERDICT: SUCCESS" in done.stdout, done.describe()
    assert name != "tsc" or text in done.stdout, done.describe()


@pytest.mark.parametrize(
    ("cpuid", "hidden"),
    [
        ("host,avx=0", "avx avx2 fma f16c vaes vpclmulqdq"),
        ("host,xsave=0", "xsave xsaveopt xsavec avx avx2 fma"),
        ("host,rdrand=0,sse4_2=0,fsgsbase=0,lahfsahf=0,cmpxchg16=0", "rdrand sse4_2 fsgsbase lahfsahf cmpxchg16"),
        (f"7,0:ebx={'0' * 32},ecx={'0' * 32}", "bmi1 bmi2 avx2 adx sha rdseed gfni rdpid"),
        ("host,maxleaf=6", "fsgsbase bmi1 avx2 xsaveopt"),
    ],
)
def test_what_cpuid_hides_is_not_there(cpuid: str, hidden: str, ring3: Ring3, tmp_path: Path) -> None:
    image = guests.build("features", tmp_path)
    done = ring3("run", "--kernel", image, "--memory", "16", "--cpuid", cpuid, timeout_s=60)
    assert "VERDICT: SUCCESS" in done.stdout, done.describe()
    shown = re.search("^shown:(.*)$", done.stdout, re.MULTILINE)
    assert shown is not None, done.describe()
    assert {f"no-{name}" for name in hidden.split()} <= set(shown[1].split()), done.describe()


@pytest.mark.parametrize("name", guests.names())
def test_guest(name: str, ring3: Ring3, tmp_path: Path) -> None:
    guest = guests.load(name)
    image = guests.build(name, tmp_path)
    sizes = ("--memory", str(guest.memory_mib), "--vcpus", str(guest.nr_vcpus))
    done = ring3("run", "--kernel", image, *sizes, "--name", name.replace("/", "-"), timeout_s=guest.timeout_s)
    assert done.exit_code == guest.expect_exit, done.describe()
    if guest.expect_stderr is not None:
        assert guest.expect_stderr in done.stderr.lower(), done.describe()
    if guest.expect_exit != 0:
        return
    verdict = re.search(r"^VERDICT: (\w+)", done.stdout, re.MULTILINE)
    assert verdict is not None, done.describe()
    if verdict.group(1) == "SKIP":
        pytest.skip(done.stdout)
    assert verdict.group(1) == "SUCCESS", done.describe()
