"""What the benchmark says of its samples: bests, means, wrong results, and the place of a profile's samples."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

_BENCH = Path(__file__).parents[3] / "bench"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Imports a module of bench/, whose names are not those of packages."""
    monkeypatch.syspath_prepend(_BENCH)

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"bench_{name}", _BENCH / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_tcg_is_the_better_of_its_models_in_each_row(load) -> None:  # type: ignore[no-untyped-def]
    report, contest = load("report"), load("contest")
    samples = {
        "native": [contest.Sample({"fib": 1.0, "lz": 1.0})],
        "QEMU max": [contest.Sample({"fib": 8.0, "lz": 30.0}), contest.Sample({"fib": 9.0})],
        "QEMU qemu64": [contest.Sample({"fib": 10.0, "lz": 2.0})],
    }
    values = report.columns(samples)
    assert values["QEMU TCG"] == {"fib": 8.0, "lz": 2.0}
    mean = report.Mean("both", ("fib", "lz", "matmul"), None)
    assert report.mean_of(values, "QEMU TCG", mean) == pytest.approx(4.0)
    assert report.mean_of(values, "Ring3", mean) is None


def test_wrong_result_is_named(load) -> None:  # type: ignore[no-untyped-def]
    report, contest = load("report"), load("contest")
    samples = {
        "native": [contest.Sample({}, {"fib": "aa"})],
        "Ring3": [contest.Sample({}, {"fib": "aa"}), contest.Sample({}, {"fib": "ab"})],
    }
    assert report.wrong_results(samples) == ["Ring3: fib computed ab, native aa"]


def test_later_block_replaces_the_one_it_overlaps(load) -> None:  # type: ignore[no-untyped-def]
    blocks = load("profile").BlockMap(["1000 40 k_1", "1020 10 u_2", "2000 10 k_3"])
    assert [blocks.find(at) for at in (0x1010, 0x1020, 0x102F, 0x1030, 0x2008)] == [None, "u_2", "u_2", None, "k_3"]


def test_samples_are_parsed(load) -> None:  # type: ignore[no-untyped-def]
    text = " ring3d vcpu 7f00 [unknown] (/memfd:ring3-code (deleted))\nring3d ffff finish (now) ([kernel.kallsyms])\n"
    found = load("profile").parse_samples(text)
    assert [(one.command, one.address, one.file) for one in found] == [
        ("ring3d vcpu", 0x7F00, "/memfd:ring3-code (deleted)"),
        ("ring3d", 0xFFFF, "[kernel.kallsyms]"),
    ]
