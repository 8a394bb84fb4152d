"""The list of devices, which may go while it is read."""

import pytest

from ring3.dom0 import xenbus
from ring3.errors import XenstoreRequestError
from ring3.libs.device import Device
from ring3.libs.xenstore import XenstoreClient


class Vanishing(XenstoreClient):
    """Nodes by path, of which some are gone as soon as they were read once: what a toolstack's `rm` looks like."""

    def __init__(self, nodes: dict[str, list[str]], vanishing: set[str], error: str = "ENOENT") -> None:
        self._nodes = nodes
        self._vanishing = vanishing
        self._error = error

    def _take(self, path: str) -> list[str]:
        if path not in self._nodes:
            raise XenstoreRequestError(0, self._error, path)
        found = self._nodes[path]
        if path in self._vanishing:
            del self._nodes[path]
        return found

    def read(self, path: str, *, tx_id: int = 0) -> bytes:  # noqa: ARG002
        self._take(path)
        return b""

    def directory(self, path: str, *, tx_id: int = 0) -> list[str]:  # noqa: ARG002
        return self._take(path)


_TOP = "/local/domain/0/backend/vif"


def nodes() -> dict[str, list[str]]:
    return {_TOP: ["1", "2"], f"{_TOP}/1": ["0", "1"], f"{_TOP}/2": ["0", "x"]}


@pytest.mark.parametrize("vanishing", [_TOP, f"{_TOP}/1", f"{_TOP}/2"])
def test_devices_that_go_while_they_are_listed_are_left_out_or_not(vanishing: str) -> None:
    """Either is right; an error is not."""
    found = xenbus.devices(Vanishing(nodes(), {vanishing}), "vif")
    assert {Device("vif", 1, 0), Device("vif", 1, 1), Device("vif", 2, 0)} >= set(found)


def test_devices_of_a_domain_that_is_gone_are_none() -> None:
    there = nodes()
    del there[f"{_TOP}/1"]
    assert xenbus.devices(Vanishing(there, set()), "vif") == [Device("vif", 2, 0)]
    assert xenbus.devices(Vanishing({}, set()), "vif") == []


def test_other_errors_are_errors() -> None:
    with pytest.raises(XenstoreRequestError, match="EACCES"):
        xenbus.devices(Vanishing({}, set(), "EACCES"), "vif")


class Nodes(XenstoreClient):
    """Values by path."""

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values

    def transaction(self, body):  # type: ignore[no-untyped-def]
        return body(1)

    def read_optional(self, path: str, *, tx_id: int = 0) -> str | None:  # noqa: ARG002
        return self.values.get(path)

    def write(self, path: str, value: str | bytes, *, tx_id: int = 0) -> None:  # noqa: ARG002
        self.values[path] = str(value)


@pytest.mark.parametrize(
    ("online", "state", "after"),
    [("1", 4, "4"), ("0", 4, "5"), ("0", 2, "5"), ("0", 6, "6"), ("0", 5, "5"), ("1", 2, "2")],
)
def test_who_asks_a_device_to_close_is_not_overruled(online: str, state: int, after: str) -> None:
    """Issue 5: a back end that was about to say Connected said it afterwards, and the domain never let go."""
    device = Device("vbd", 1, 0)
    nodes = Nodes({f"{device.back}/state": "5", f"{device.back}/online": online})
    xenbus.switch_state(nodes, device, xenbus.XenbusState(state))
    assert nodes.values[f"{device.back}/state"] == after
