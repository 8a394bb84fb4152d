"""The tree's layers: an entry may use only what stands above it (docs/architecture.md). Any other edge fails here."""

import ast
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
PACKAGE = REPOSITORY / "python" / "ring3"

CRATES: dict[str, set[str]] = {
    "abi": set(),
    "machine": set(),
    "engine": {"machine"},
    "engine-bt": {"machine", "engine"},
    "engine-kvm": {"machine", "engine"},
    "hypervisor": {"abi", "machine", "engine"},
    "lockdown": set(),
    "blkif": set(),
    "pymod": {"abi", "machine", "engine", "engine-bt", "engine-kvm", "hypervisor", "lockdown", "blkif"},
}
"""Crate to the crates that it may use."""

PYTHON: dict[str, set[str]] = {
    "errors": set(),
    "caches": set(),
    "deferred": set(),
    "abi": set(),
    "_core": set(),
    "hypervisor": {"_core", "errors", "caches", "abi"},
    "libs": {"errors", "abi"},
    "builder": {"errors", "caches", "abi", "libs"},
    "dom0": {"errors", "abi", "libs"},
    "tools": {"errors", "abi", "libs", "builder"},
    "cli": {"deferred", "errors", "tools"},
    "dev": set(),
    "__main__": {"cli"},
    "__init__": set(),
}
"""Part of the package to the parts that it may import."""

ENTRY_POINTS = {
    ("tools/doctor.py", "_core"),  # asks which engines are built in, with no hypervisor running
    ("dom0/block/quick.py", "_core"),  # the part of a disk's data path that is too slow in Python
}
"""(file, part) edges that the rule excepts, each with its reason."""


def python_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def imported_parts(path: Path) -> set[str]:
    """Returns the parts of ring3 that a file imports, at any depth of the file."""
    parts: set[str] = set()
    package = ["ring3", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "ring3" else [module]
        parts.update(name.split(".")[1] for name in names if name.startswith("ring3."))
    return parts


def owning_part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_python_file_imports_only_what_stands_above_it(path: Path) -> None:
    part = owning_part(path)
    assert part in PYTHON, f"{part} has no place in the layers"
    allowed = PYTHON[part] | {part, "__version__"}
    relative = str(path.relative_to(PACKAGE))
    wrong = {other for other in imported_parts(path) - allowed if (relative, other) not in ENTRY_POINTS}
    assert not wrong, f"{relative} imports {sorted(wrong)}"


@pytest.mark.parametrize("manifest", sorted(REPOSITORY.glob("crates/*/Cargo.toml")), ids=lambda path: path.parent.name)
def test_crate_uses_only_crates_above_it(manifest: Path) -> None:
    name = manifest.parent.name
    assert name in CRATES, f"{name} has no place in the layers"
    used = {
        dependency.removeprefix("ring3-")
        for dependency in tomllib.loads(manifest.read_text()).get("dependencies", {})
        if dependency.startswith("ring3-")
    }
    assert used <= CRATES[name], f"{name} uses {sorted(used - CRATES[name])}"


def test_no_file_is_longer_than_900_lines() -> None:
    files = [*PACKAGE.rglob("*.py"), *REPOSITORY.glob("crates/*/src/**/*.rs")]
    long = {str(path.relative_to(REPOSITORY)): count for path in files if (count := _line_count(path)) > 900}
    assert not long


def _line_count(path: Path) -> int:
    return len(path.read_text().splitlines())
