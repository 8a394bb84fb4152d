"""docs/coverage.md says what the tables say."""

from pathlib import Path

from support import coverage

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"


def test_coverage_page_is_up_to_date() -> None:
    assert PAGE.read_text() == coverage.page(), "run `make coverage`"


def test_every_partial_and_refused_row_has_a_note() -> None:
    rows = [line.split("|") for line in coverage.page().splitlines() if line.startswith("| ")]
    noted = {"partial", "refused"}
    bare = [row[3].strip() for row in rows if len(row) == 7 and row[4].strip() in noted and not row[5].strip()]
    assert not bare
