"""One console: the ring page, the log, the readers and the input that waits for the guest.

Source: xen/include/public/io/console.h, struct xencons_interface.
"""

from __future__ import annotations

import logging
import struct
from typing import Final

from ring3.abi import console as abi
from ring3.dom0.byte_ring import ByteRing
from ring3.dom0.console.log import ConsoleLog
from ring3.dom0.console.place import ConsolePlace
from ring3.dom0.console.reader import Reader
from ring3.dom0.ring_page import Page
from ring3.errors import RingError

_log = logging.getLogger(__name__)
INPUT_BYTES_MAX: Final = 16 << 10
"""Input that waits for a guest which does not read its console."""
_OWNER: Final = struct.Struct("<16sQ")
"""Handle of the domain, frame of the ring."""


class DomainConsole:
    """The console of one domain, until close().

    The guest sees its output taken when it has been logged: a daemon that is killed and started again goes on with the
    same byte. `port` is ours, or None where the domain has let go of its end already.
    """

    def __init__(
        self, place: ConsolePlace, page: Page, port: int | None, owner: bytes, *, keeps_backlog: bool = True
    ) -> None:
        """`owner` tells the domain from a later one of the same domid; what a predecessor logged for it counts.

        Without a backlog, a new reader of the raw socket gets only what comes after it.
        """
        self.place = place
        self.domid = place.domid
        self.port = port
        self.readers: list[Reader] = []
        self.is_broken = False
        self._keeps_backlog = keeps_backlog
        self._page = page
        self._input = bytearray()
        view = page.view
        self._out = ByteRing(
            view,
            self.domid,
            data_offset=abi.OUT_OFFSET,
            size=abi.OUT_SIZE,
            cons_offset=abi.OUT_CONS_OFFSET,
            prod_offset=abi.OUT_PROD_OFFSET,
        )
        self._in = ByteRing(
            view,
            self.domid,
            data_offset=abi.IN_OFFSET,
            size=abi.IN_SIZE,
            cons_offset=abi.IN_CONS_OFFSET,
            prod_offset=abi.IN_PROD_OFFSET,
        )
        self.goes_on = read_owner(place) == owner
        """Whether a predecessor served this console."""
        if not self.goes_on:
            place.owner.write_bytes(owner)
        self._log = ConsoleLog(place.log, place.state, begin=self._out.cons, goes_on=self.goes_on)

    def backlog(self) -> bytes:
        """Returns recent output, for a new reader."""
        return bytes(self._log.backlog) if self._keeps_backlog else b""

    def output_from(self, offset: int) -> tuple[int, bytes]:
        """Returns the output from an offset on, as far as it is at hand, and the offset where that begins."""
        begin = self._log.backlog_begin
        if begin <= offset <= self._log.total:
            return offset, bytes(self._log.backlog[offset - begin :])
        return begin, bytes(self._log.backlog)

    def pump(self) -> bool:
        """Moves one ring's worth of output and what fits of the input. Returns whether the guest should be notified."""
        if self.is_broken:
            return False
        try:
            data = self._out.peek(self._log.total & 0xFFFFFFFF, abi.OUT_SIZE)
            nr_written = self._in.write(self._input) if self._input else 0
        except RingError as error:
            # The guest alone loses its console; readers keep what there was.
            _log.warning("%s", error)
            self.is_broken = True
            return False
        del self._input[:nr_written]
        if data:
            self._log.append(data)
            for reader in self.readers:
                reader.queue(data)
        has_moved = self._out.cons != self._log.total & 0xFFFFFFFF
        if has_moved:
            self._out.cons = self._log.total
        return has_moved or nr_written > 0

    def has_output(self) -> bool:
        """Returns whether the guest has printed more."""
        return not self.is_broken and self._out.prod != self._log.total & 0xFFFFFFFF

    def room_for_input(self) -> bool:
        """Returns whether readers may send more."""
        return len(self._input) < INPUT_BYTES_MAX

    def queue_input(self, data: bytes) -> None:
        """Adds what a reader typed. A reader sends at most one chunk after room_for_input() became false."""
        self._input += data

    def close(self) -> None:
        """Unmaps the page and closes the log; readers stay as they are."""
        self._out.release()
        self._in.release()
        self._page.close()
        self._log.close()


def make_owner(handle: bytes, mfn: int) -> bytes:
    """Returns what tells a console from another of the same domid and number."""
    return _OWNER.pack(handle, mfn)


def parse_owner(owner: bytes) -> tuple[bytes, int]:
    """Returns the domain's handle and the frame of the ring."""
    handle, mfn = _OWNER.unpack(owner)
    return handle, mfn


def read_owner(place: ConsolePlace) -> bytes | None:
    """Returns the owner of the console that a predecessor served there, or None."""
    try:
        owner = place.owner.read_bytes()
    except OSError:
        return None
    return owner if len(owner) == _OWNER.size else None
