"""Prints docs/coverage.md from the hypercall table itself: `python tests/support/coverage.py > docs/coverage.md`.

The rows are data in the dispatch tables (crates/hypervisor/src/hypercall/rows.rs, ring3.hypervisor.registry); what is
said about `xl` and the engine stands in coverage_notes.md beside this file.
"""

import sys
from pathlib import Path

from ring3._core import Hypervisor
from ring3.hypervisor import registry, table

_INTRO = """\
# Coverage

Written by `make coverage` from the hypercall table; `ring3 info --hypercalls` shows the same rows with their counters.

- **full**: as Xen 4.17 for a domain of the kinds that there are (PV; domain 0 as processes).
- **partial**: the note says what is missing.
- **refused**: answered with an error on purpose; the note says which.
- **absent**: -ENOSYS, and counted.

## Hypercalls

| number | sub-op | name | coverage | note |
|---:|---:|---|---|---|
"""


def page() -> str:
    """Returns the whole document."""
    assert table.__all__, "importing it registers the cold hypercalls"
    core = Hypervisor(nr_frames=4096, nr_pcpus=1)
    core.add_rows([(row.op, row.subop, row.name, str(row.coverage), row.note) for row in registry.rows()])
    lines = []
    for op, subop, name, coverage, note, _ in core.hypercall_rows():
        number = str(op) if subop == registry.NO_SUBOP else ""
        lines.append(f"| {number} | {subop if subop >= 0 else ''} | {name} | {coverage} | {note} |")
    core.stop()
    notes = Path(__file__).with_name("coverage_notes.md").read_text()
    return _INTRO + "\n".join(lines) + "\n\n" + notes


def main() -> None:
    """Prints the document."""
    sys.stdout.write(page())


if __name__ == "__main__":
    main()
