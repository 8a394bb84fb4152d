"""cpuid= of xl.cfg(5): both forms, and what they make of a policy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring3.errors import ConfigError
from ring3.libs.cpu_policy import NO_SUBLEAF, Leaves
from ring3.tools.cpuid import Wish, changed_leaves, parse_list, parse_option, parse_string

ONE = (1, NO_SUBLEAF)
CURRENT: Leaves = {ONE: (0x00A20F10, 0x10800, 0xFFFF0000, 0x1), (7, 0): (0, 0xF0, 0, 0)}
DEFAULT: Leaves = {ONE: (0x00A20F10, 0x10800, 0x0000FFFF, 0x3), (7, 0): (0, 0xF0, 0, 0)}
HOST: Leaves = {ONE: (0x00A20F12, 0x10800, 0xFFFFFFFF, 0x7), (7, 0): (0, 0xFFF, 0, 0)}


def changed(*specs: str) -> Leaves:
    return changed_leaves([wish for spec in specs for wish in parse_option(spec)], CURRENT, DEFAULT, HOST)


def test_a_bit_is_forced_or_taken_from_the_default_or_the_host() -> None:
    assert changed("host") == {}
    assert changed("host,fpu=0") == {ONE: (*CURRENT[ONE][:3], 0)}
    assert changed("host,vme=x") == {ONE: (*CURRENT[ONE][:3], 3)}
    assert changed("host,de=k") == changed("host,de=s") == {ONE: (*CURRENT[ONE][:3], 5)}
    assert changed("host, pse=1 ,fpu=0") == {ONE: (*CURRENT[ONE][:3], 8)}
    assert changed("host,tm=1,tm=0") == {}


def test_numbers_are_spread_over_their_fields() -> None:
    assert changed("host,family=6,model=0x55,stepping=7") == {ONE: (0x00050657, *CURRENT[ONE][1:])}
    assert changed("host,family=25,model=1")[ONE][0] == 0x00A00F10
    assert changed("host,stepping=k")[ONE][0] == 0x00A20F12
    assert changed("host,clflush=16")[ONE][1] == 0x11000


def test_registers_are_given_bit_by_bit() -> None:
    bits = "0" * 16 + "1" * 8 + "x" * 4 + "k" * 4
    assert changed(f"1:ecx={bits}") == {ONE: (*CURRENT[ONE][:2], 0xFFFF, 1)}
    assert changed(f"7,0:ebx={'x' * 24}{'s' * 8},edx={'0' * 32}") == {(7, 0): (0, 0xFF, 0, 0)}
    assert parse_list([f"0x7, 0x0:ebx={'0' * 32}"]) == [Wish(7, 0, 1, "0" * 32)]


def test_leaves_that_are_not_there_can_be_hidden_only() -> None:
    assert changed("host,svm_npt=0") == {}
    for spec in ("host,svm_npt=1", "host,arat=k", f"0x20:eax={'1' * 32}", f"7:eax={'k' * 32}"):
        with pytest.raises(ConfigError, match="there is no leaf"):
            changed(spec)


@pytest.mark.parametrize("text", ["", "tm=0", "guest,tm=0", "host,tm", "host,foo=1", "host,tm=2", "host,tm=y", "host,"])
def test_strings_that_say_nothing_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"host|=|name|value"):
        parse_string(text)


@pytest.mark.parametrize("value", ["family=300", "model=-1", "stepping=16", "clflush=", "family=0x"])
def test_numbers_that_do_not_fit_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match="no value for"):
        parse_string(f"host,{value}")


@pytest.mark.parametrize(
    "item",
    [
        *("", "1", "1:", "x:eax=" + "0" * 32, "1,y:eax=" + "0" * 32, "-1:eax=" + "0" * 32, "1:efx=" + "0" * 32),
        *("1:eax=" + "0" * 31, "1:eax=" + "0" * 33, "1:eax=" + "2" * 32, "0x100000000:eax=" + "0" * 32),
    ],
)
def test_list_items_that_say_nothing_are_refused(item: str) -> None:
    with pytest.raises(ValueError, match=r":|leaf|names|characters"):
        parse_list([item])


@given(st.text(alphabet="host,=:01xkseax 7."))
def test_hostile_text_is_refused_or_read(text: str) -> None:
    try:
        parse_option(text)
    except ConfigError as error:
        assert error.key == "cpuid"
