"""Every constant, size and offset of ring3.abi equals what Xen's C headers say (libxen-dev, compiled by gcc)."""

import ctypes
import inspect
import shutil
import subprocess
import types
from pathlib import Path

import pytest

from ring3.abi import (
    arch_x86,
    console,
    domctl,
    elfnote,
    errno,
    event_channel,
    features,
    grant_table,
    memory,
    sched,
    start_info,
    sysctl,
    vcpu,
    version,
    xen,
    xs_wire,
)

MODULES = (
    arch_x86,
    domctl,
    event_channel,
    features,
    grant_table,
    memory,
    sched,
    start_info,
    sysctl,
    vcpu,
    version,
    xen,
)
HEADERS = (
    *("xen.h", "domctl.h", "sysctl.h", "memory.h", "event_channel.h", "vcpu.h", "sched.h", "version.h", "features.h"),
    *("grant_table.h", "elfnote.h", "errno.h", "io/xs_wire.h", "io/console.h"),
)
RENAMED = {
    "vcpu_info.arch_cr2": "arch.cr2",
    "vcpu_info.arch_pad": "arch.pad",
    "mmuext_op.arg1": "arg1.mfn",
    "mmuext_op.arg2": "arg2.src_mfn",
    "start_info.console_mfn": "console.domU.mfn",
    "start_info.console_evtchn": "console.domU.evtchn",
    "evtchn_status.u0": "u",
    "xen_memory_domain": "xen_memory_domain",
}
TYPE_NAMES = {"evtchn_port_op": "struct evtchn_send", "xen_memory_domain": "struct xen_memory_domain"}
NOT_IN_C = {"evtchn_status.u1", "xen_sysctl_readconsole.pad0", "xen_sysctl_readconsole.pad1"}

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None or not Path("/usr/include/xen/domctl.h").exists(),
    reason="gcc and libxen-dev are needed to compile Xen's headers",
)


def structures() -> list[type[ctypes.Structure]]:
    """Returns the structures that the ABI modules define."""
    found = {
        value
        for module in MODULES
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, ctypes.Structure) and not value.__name__.startswith("_")
    }
    return sorted(found, key=lambda kind: kind.__name__)


def constants(module: types.ModuleType) -> dict[str, int]:
    """Returns the integer constants of a module, except our own spellings (lower case or private)."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_T")
    }


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the C compiler says: sizes, offsets and values, by the names that Python uses."""
    lines = []
    for kind in structures():
        name = kind.__name__
        c_type = TYPE_NAMES.get(name, f"struct {name}")
        lines.append(f'F("{name}", sizeof({c_type}));')
        for field, *_ in kind._fields_:
            key = f"{name}.{field}"
            if not field.startswith("_") and key not in NOT_IN_C:
                lines.append(f'F("{key}", offsetof({c_type}, {RENAMED.get(key, field)}));')
    for module in MODULES:
        lines += [f'#ifdef {name}\nF("{name}", {name});\n#endif' for name in constants(module)]
    for note in elfnote.ElfNote:
        lines.append(f'F("elfnote.{note.name}", XEN_ELFNOTE_{note.name});')
    for message in xs_wire.XsType:
        lines.append(f'F("xs.{message.name}", XS_{message.name});')
    internal = {"ERESTART", "EWOULDBLOCK"}
    lines += [f'F("errno.{name}", XEN_{name});' for name in constants(errno) if name[0] == "E" and name not in internal]
    for prefix, module, c_type in (
        ("console", console, "struct xencons_interface"),
        ("xs_wire", xs_wire, "struct xenstore_domain_interface"),
    ):
        for name in constants(module):
            if name.endswith("_OFFSET"):
                field = name.removesuffix("_OFFSET").lower()
                lines.append(f'F("{prefix}.{name}", offsetof({c_type}, {field}));')
            elif name.endswith("_INTERFACE_SIZE"):
                lines.append(f'F("{prefix}.{name}", sizeof({c_type}));')
    source = tmp_path_factory.mktemp("abi") / "facts.c"
    includes = "".join(f"#include <xen/{header}>\n" for header in HEADERS)
    source.write_text(
        "#define __XEN_TOOLS__ 1\n"
        + "".join(f"#include <{header}.h>\n" for header in ("stdint", "stddef", "stdio", "sys/types"))
        + includes
        + '#define F(name, value) printf("%s %lld\\n", name, (long long)(value))\nint main(void) {\n'
        + "\n".join(lines)
        + "\nreturn 0; }\n"
    )
    program = source.with_suffix("")
    subprocess.run(["gcc", "-w", "-o", str(program), str(source)], check=True)
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


@pytest.mark.parametrize("kind", structures(), ids=lambda kind: kind.__name__)
def test_structure_has_the_size_and_offsets_of_c(kind: type[ctypes.Structure], facts: dict[str, int]) -> None:
    assert ctypes.sizeof(kind) == facts[kind.__name__]
    for field, *_ in kind._fields_:
        key = f"{kind.__name__}.{field}"
        if not field.startswith("_") and key not in NOT_IN_C:
            assert getattr(kind, field).offset == facts[key], key


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_constants_have_the_values_of_c(module: types.ModuleType, facts: dict[str, int]) -> None:
    compared = {name: value for name, value in constants(module).items() if name in facts}
    assert compared
    for name, value in compared.items():
        assert value & 0xFFFFFFFFFFFFFFFF == facts[name] & 0xFFFFFFFFFFFFFFFF, name


def test_hypercall_numbers_are_all_compared(facts: dict[str, int]) -> None:
    ours = {name for name in constants(xen) if name.startswith("__HYPERVISOR_")}
    unnamed_in_headers = {"__HYPERVISOR_mca", "__HYPERVISOR_paging_domctl_cont"}
    assert ours - unnamed_in_headers <= facts.keys()


def test_elf_notes_xenstore_types_and_error_codes(facts: dict[str, int]) -> None:
    for note in elfnote.ElfNote:
        assert note == facts[f"elfnote.{note.name}"]
    for kind in xs_wire.XsType:
        assert kind == facts[f"xs.{kind.name}"]
    for name, value in constants(errno).items():
        if f"errno.{name}" in facts:
            assert value == facts[f"errno.{name}"]


def test_ring_pages_have_the_offsets_of_c(facts: dict[str, int]) -> None:
    for prefix, module in (("console", console), ("xs_wire", xs_wire)):
        compared = {n: v for n, v in constants(module).items() if f"{prefix}.{n}" in facts}
        assert len(compared) >= 7
        for name, value in compared.items():
            assert value == facts[f"{prefix}.{name}"], name
