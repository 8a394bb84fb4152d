"""What is missing is named, with the command that installs it; nothing is installed without root."""

import pytest

from ring3.dev import packages


def test_what_is_there_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packages._PRESENT, "gcc", lambda: True)
    assert packages.ensure(["gcc"])


def test_without_root_the_command_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(packages._PRESENT, "gcc", lambda: False)
    monkeypatch.setattr(packages.os, "geteuid", lambda: 1000)
    assert not packages.ensure(["gcc"])
    assert "apt-get install gcc" in capsys.readouterr().err
