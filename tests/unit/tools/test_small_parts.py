"""Configuration, state letters, crash reports: plain values in and out."""

from pathlib import Path

import pytest

from ring3.errors import ConfigError
from ring3.libs.domctl import DomainInfo
from ring3.tools import options
from ring3.tools.config import DomainConfig, name_from_kernel
from ring3.tools.crash import _registers, hypervisor_report
from ring3.tools.run import machine_mib
from ring3.tools.show import state_letters
from ring3.tools.store_nodes import availability


@pytest.mark.parametrize("name", ["", "7", "a b", "-x", "a/b", "x" * 64, "ä"])
def test_names_that_no_domain_can_have(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        DomainConfig(name, Path("k"))


@pytest.mark.parametrize(("memory_mib", "nr_vcpus"), [(0, 1), (-5, 1), (64, 0), (64, 33)])
def test_sizes_that_no_domain_can_have(memory_mib: int, nr_vcpus: int) -> None:
    with pytest.raises(ConfigError):
        DomainConfig("a", Path("k"), memory_mib=memory_mib, nr_vcpus=nr_vcpus)


@pytest.mark.parametrize("file", ["vmlinuz-6.1.0-56-cloud-amd64", ".hidden", "123", "with space", "ü", "x" * 300])
def test_every_kernel_file_gives_a_valid_name(file: str) -> None:
    assert DomainConfig(name_from_kernel(Path("/boot") / file), Path(file)).name


def info(flags: int) -> DomainInfo:
    return DomainInfo(1, flags, 0, 0, 0, 0, 1, 0, bytes(16))


@pytest.mark.parametrize(
    ("flags", "letters"),
    [
        (32, "r-----"),
        (16, "-b----"),
        (8, "--p---"),
        (4, "---s--"),
        (4 | 3 << 16, "----c-"),
        (1, "-----d"),
        (0, "------"),
    ],
)
def test_state_letters_are_those_of_xl(flags: int, letters: str) -> None:
    assert state_letters(info(flags)) == letters


def test_report_is_the_last_about_that_domain() -> None:
    dmesg = (
        "(XEN) domain 1 crashed: old\nrip 1\n(d2) talk\n(XEN) domain 2 crashed: other\nrip 2\n"
        "(XEN) domain 1 crashed: new\nrip 3\nstack\n(XEN) domain 2 crashed: again\nrip 4\n"
    )
    assert hypervisor_report(dmesg, 1) == ["domain 1 crashed: new", "rip 3", "stack"]
    assert hypervisor_report(dmesg, 12) == []


def test_registers_of_a_context_are_shown() -> None:
    context = bytearray(5168)
    context[0x208 + 128 : 0x208 + 136] = (0xFFFFFFFF81000000).to_bytes(8, "little")
    assert any("rip    ffffffff81000000" in line for line in _registers(bytes(context)))


def test_a_machine_is_larger_than_its_guest() -> None:
    assert machine_mib(256) * 256 > 256 * 256 + 256 * 256 // 512 + 1024


def test_vcpus_to_come_are_at_least_those_at_start() -> None:
    assert DomainConfig("a", Path("k"), nr_vcpus=3).nr_vcpus_max == 3
    assert DomainConfig("a", Path("k"), nr_vcpus=3, nr_vcpus_max=8).nr_vcpus_max == 8
    for nr_max in (2, 33):
        with pytest.raises(ConfigError, match="maxvcpus"):
            DomainConfig("a", Path("k"), nr_vcpus=3, nr_vcpus_max=nr_max)


def test_the_first_vcpus_are_available() -> None:
    nodes = availability(1, 3)
    assert nodes == {
        "cpu/0/availability": "online",
        "cpu/1/availability": "offline",
        "cpu/2/availability": "offline",
    }


@pytest.mark.parametrize(("text", "key"), [("^]", b"\x1d"), ("^a", b"\x01"), ("^A", b"\x01"), ("q", b"q"), ("^", b"^")])
def test_key_that_leaves_a_console_may_be_chosen(text: str, key: bytes) -> None:
    assert options.parse(["console", "web", "-e", text]).escape == key


@pytest.mark.parametrize("text", ["", "ab", "^1", "\xe4"])
def test_what_is_no_key_is_bad_usage(text: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        options.parse(["console", "web", "-e", text])
