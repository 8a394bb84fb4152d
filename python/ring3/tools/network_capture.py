"""`ring3 network-capture`: the packets of a vif or a switch as a pcap file, live."""

from __future__ import annotations

import contextlib
import signal
import struct
import sys
from pathlib import Path
from typing import BinaryIO, Final

from ring3.errors import ConfigError, ConnectionLostError
from ring3.libs.capture import SNAPLEN_MAX, SOCKET_NAME, CaptureStream
from ring3.tools import rundir
from ring3.tools.network import find_number
from ring3.tools.toolstack import Toolstack

_FILE_HEADER: Final = struct.Struct("<IHHiIII")
"""magic, version, zone, accuracy, snaplen, link type. Source: pcap-savefile(5)."""
_MAGIC: Final = 0xA1B2C3D4
_LINKTYPE_ETHERNET: Final = 1


def capture(
    name: str | None, device: str | None, switch: str | None, *, output: Path, snaplen: int, nr_packets_max: int | None
) -> int:
    """Writes packets until they are so many, the source is gone, or somebody ends it."""
    to_stdout = str(output) == "-"
    if to_stdout and sys.stdout.isatty():
        raise ConfigError("a capture is no text for a terminal: -w FILE, or a pipe such as | tcpdump -r -", key="-w")
    source = f"switch {switch}"
    if name is not None:
        with Toolstack(rundir.default()) as toolstack:
            domid = toolstack.find_guest(name, "network").domid
            source = f"vif {domid} {find_number(toolstack, domid, device)}"
    path = rundir.default().net_dir / SOCKET_NAME
    if not path.exists():
        raise ConnectionLostError("no domain has a network device")
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(CaptureStream(path, source, snaplen))
        file: BinaryIO = sys.stdout.buffer if to_stdout else stack.enter_context(output.open("wb"))
        return _write(stream, file, snaplen, nr_packets_max)


def _write(stream: CaptureStream, file: BinaryIO, snaplen: int, nr_packets_max: int | None) -> int:
    nr_packets = nr_lost = 0
    file.write(_FILE_HEADER.pack(_MAGIC, 2, 4, 0, 0, min(snaplen, SNAPLEN_MAX), _LINKTYPE_ETHERNET))
    file.flush()
    # Ended as tcpdump is: what was written is whole.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        for packet in stream.packets():
            if packet.nr_lost:
                nr_lost = packet.nr_lost
                continue
            file.write(packet.raw)
            file.flush()
            nr_packets += 1
            if nr_packets == nr_packets_max:
                break
    print(f"{nr_packets} packets captured, {nr_lost} lost", file=sys.stderr)
    return 0
