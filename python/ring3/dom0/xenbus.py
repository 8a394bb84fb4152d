"""The xenbus protocol from a back end's side: where the two halves of a device stand, and what comes next.

Source: xen/include/public/io/xenbus.h.
"""

from __future__ import annotations

from enum import IntEnum

from ring3.libs.device import Device, back_directory
from ring3.libs.xenstore import XenstoreClient


class XenbusState(IntEnum):
    """The state node of either half."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8


def read_state(xenstore: XenstoreClient, node: str) -> XenbusState | None:
    """Returns the state of one half; None if it is gone, UNKNOWN for anything that is no state."""
    text = xenstore.read_optional(f"{node}/state")
    if text is None:
        return None
    return XenbusState(int(text)) if text.isdecimal() and int(text) < len(XenbusState) else XenbusState.UNKNOWN


def switch_state(xenstore: XenstoreClient, device: Device, state: XenbusState) -> None:
    """Sets the back end's state, unless it has it already or the device has gone.

    Who asks a device to close meanwhile (`online`) is not overruled: the front end would never see it.
    """

    def write(tx_id: int) -> None:
        current = xenstore.read_optional(f"{device.back}/state", tx_id=tx_id)
        is_opening = state in (XenbusState.INIT_WAIT, XenbusState.CONNECTED)
        if is_opening and xenstore.read_optional(f"{device.back}/online", tx_id=tx_id) == "0":
            return
        if current is not None and current != str(int(state)):
            xenstore.write(f"{device.back}/state", str(int(state)), tx_id=tx_id)

    xenstore.transaction(write)


def devices(xenstore: XenstoreClient, kind: str) -> list[Device]:
    """Returns the devices of a kind that domain 0 serves."""
    found = []
    for domid in xenstore.directory_optional(back_directory(kind)):
        for number in xenstore.directory_optional(f"{back_directory(kind)}/{domid}"):
            device = Device.from_path(f"{back_directory(kind)}/{domid}/{number}")
            if device is not None:
                found.append(device)
    return found
