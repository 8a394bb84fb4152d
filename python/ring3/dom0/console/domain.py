"""One domain's console: the ring page, the log, the readers and the input that waits for the guest.

Source: xen/include/public/io/console.h, struct xencons_interface.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from ring3.abi import console as abi
from ring3.dom0.byte_ring import ByteRing
from ring3.dom0.console.log import ConsoleLog
from ring3.dom0.console.reader import Reader
from ring3.errors import RingError
from ring3.libs.foreignmemory import ForeignMapping

_log = logging.getLogger(__name__)
INPUT_BYTES_MAX: Final = 16 << 10
"""Input that waits for a guest which does not read its console."""


class DomainConsole:
    """The console of one domain, until close()."""

    def __init__(self, domid: int, mapping: ForeignMapping, port: int, log_path: Path) -> None:
        self.domid = domid
        self.port = port
        self.readers: list[Reader] = []
        self.is_broken = False
        self._log = ConsoleLog(log_path)
        self._mapping = mapping
        self._input = bytearray()
        page = mapping.view
        self._out = ByteRing(
            page,
            domid,
            data_offset=abi.OUT_OFFSET,
            size=abi.OUT_SIZE,
            cons_offset=abi.OUT_CONS_OFFSET,
            prod_offset=abi.OUT_PROD_OFFSET,
        )
        self._in = ByteRing(
            page,
            domid,
            data_offset=abi.IN_OFFSET,
            size=abi.IN_SIZE,
            cons_offset=abi.IN_CONS_OFFSET,
            prod_offset=abi.IN_PROD_OFFSET,
        )

    def backlog(self) -> bytes:
        """Returns recent output, for a new reader."""
        return bytes(self._log.backlog)

    def pump(self) -> bool:
        """Moves one ring's worth of output and what fits of the input. Returns whether the guest should be notified."""
        if self.is_broken:
            return False
        try:
            data = self._out.read(abi.OUT_SIZE)
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
        return bool(data) or nr_written > 0

    def has_output(self) -> bool:
        """Returns whether the guest has printed more."""
        return not self.is_broken and not self._out.is_empty()

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
        self._mapping.close()
        self._log.close()
