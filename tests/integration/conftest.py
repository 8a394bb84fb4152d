"""Fixtures of tests that run the command."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ring3.libs.connection import Connection
from support.command import Ring3


@pytest.fixture
def conn(ring3: Ring3) -> Iterator[Connection]:
    """A process of domain 0, in a small machine."""
    assert ring3("up", "--memory", "64").exit_code == 0
    with Connection.connect(Path(ring3.environment["RING3_RUN_DIR"]) / "control") as connection:
        yield connection
