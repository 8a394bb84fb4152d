"""xl.cfg(5): what a configuration file says, and what is wrong with one."""

import argparse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring3.errors import ConfigError
from ring3.tools.config import OnReboot
from ring3.tools.config_file import parse
from ring3.tools.domain_options import domain_config

FILE = Path("guest.cfg")
_OPTIONS = dict.fromkeys(
    ("kernel", "ramdisk", "cmdline", "memory", "vcpus", "maxvcpus", "name", "on_reboot", "tsc_mode")
)


def options(config: Path, **given: object) -> argparse.Namespace:
    lists: dict[str, object] = {key: [] for key in ("channel", "p9", "vif", "disk", "vfb", "cpuid")}
    return argparse.Namespace(config=config, **{**_OPTIONS, **lists, **given})


def test_values_of_every_kind() -> None:
    text = """# a guest
name = "web"; memory = 0x200
vcpus=2   # of four
disk = [ 'a,raw,xvda,w',
         "b,raw,xvdb,r", ]  # two
vif = []
extra = 'console=hvc0 '
extra += "quiet"
disk += [ 'c' ]
nested = [ [ 1, 'x' ], 2 ]
"""
    settings = {key: setting.value for key, setting in parse(text, FILE).items()}
    assert settings == {
        "name": "web",
        "memory": 512,
        "vcpus": 2,
        "disk": ["a,raw,xvda,w", "b,raw,xvdb,r", "c"],
        "vif": [],
        "extra": "console=hvc0 quiet",
        "nested": [[1, "x"], 2],
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a", 1),
        ("\na =", 2),
        ("a = 1 2", 1),
        ("a = [1", 1),
        ('a = "x', 1),
        ("a = 1\n\n= 2", 3),
        ("a = {", 1),
        ("1 = 1", 1),
    ],
)
def test_what_is_no_setting_is_told_with_its_line(text: str, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, FILE)
    assert caught.value.line == line


def test_options_come_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "guest.cfg"
    path.write_text(
        f"""type = "pv"
name = "web"
kernel = "{tmp_path}/vmlinuz"
root = "/dev/xvda ro"
extra = "console=hvc0"
memory = 256
on_reboot = "destroy"
tsc_mode = "native"
p9 = [ "tag=a,path={tmp_path}" ]
"""
    )
    config = domain_config(options(path))
    assert (config.name, config.cmdline, config.memory_mib) == ("web", "root=/dev/xvda ro console=hvc0", 256)
    assert (config.nr_vcpus, config.on_reboot, len(config.devices)) == (1, OnReboot.DESTROY, 1)
    config = domain_config(options(path, name="other", cmdline="", memory=64, p9=[f"tag=b,path={tmp_path}"]))
    assert (config.name, config.cmdline, config.memory_mib, len(config.devices)) == ("other", "", 64, 2)


@pytest.mark.parametrize(
    "text", ["usb = 1", "memory = 'x'", "memory = 0", "disk = 'x'", "type = 'hvm'", "on_reboot='x'", "tsc_mode='x'"]
)
def test_settings_that_cannot_be_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "guest.cfg"
    path.write_text(f"kernel = 'k'\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        domain_config(options(path))
    assert caught.value.key == text.split("=")[0].strip()


def test_cpuid_in_both_forms(tmp_path: Path) -> None:
    path = tmp_path / "guest.cfg"
    path.write_text("kernel = 'k'\ncpuid = 'host,avx=0'\n")
    wishes = domain_config(options(path, cpuid=["host,tm=0"])).cpuid
    assert [(wish.leaf, wish.register) for wish in wishes] == [(1, 2), (1, 3)]
    path.write_text(f"kernel = 'k'\ncpuid = [ '7,0:ebx={'x' * 32}', '1:eax={'k' * 32}' ]\n")
    assert [wish.leaf for wish in domain_config(options(path)).cpuid] == [7, 1]


@pytest.mark.parametrize("value", ["1", "'avx=0'", "'host,avx=maybe'", "[ 'host,avx=0' ]", "[ 1 ]"])
def test_cpuid_that_says_nothing_is_told_with_file_and_line(tmp_path: Path, value: str) -> None:
    path = tmp_path / "guest.cfg"
    path.write_text(f"kernel = 'k'\n\ncpuid = {value}\n")
    with pytest.raises(ConfigError) as caught:
        domain_config(options(path))
    assert (caught.value.file, caught.value.line, caught.value.key) == (path, 3, "cpuid")


@pytest.mark.parametrize("text", ["x=[", "x=['a',", "x=[\n#", "x=[[", "x=" + 5000 * "["])
def test_list_without_an_end_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not expected here"):
        parse(text, FILE)


def test_many_lines_that_say_nothing_are_read_over() -> None:
    assert parse("\n" * 5000 + "a=1\n" + "# more\n" * 5000, FILE)["a"].value == 1


@given(st.text(alphabet="ab=[],'\"\n;#1 +x\\\0é"))
def test_hostile_text_is_refused_or_read(text: str) -> None:
    try:
        parse(text, FILE)
    except ConfigError:
        return
