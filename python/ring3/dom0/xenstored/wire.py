"""The xenstore wire format: messages to and from bytes.

Source: xen/include/public/io/xs_wire.h, struct xsd_sockmsg: type, req_id, tx_id, len, four little-endian u32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ring3.abi.xs_wire import XENSTORE_PAYLOAD_MAX, XSD_SOCKMSG


class RefusedError(Exception):
    """A request is refused; `errno_name` goes onto the wire as it is."""

    def __init__(self, errno_name: str) -> None:
        super().__init__(errno_name)
        self.errno_name = errno_name


class ProtocolError(Exception):
    """The byte stream cannot be followed any further: the sender gets disconnected."""


@dataclass(frozen=True, slots=True)
class Message:
    """One request, reply or event. `type` is a plain number: a client may send any."""

    type: int
    req_id: int
    tx_id: int
    payload: bytes

    def encode(self) -> bytes:
        """Returns the header and the payload."""
        return XSD_SOCKMSG.pack(self.type, self.req_id, self.tx_id, len(self.payload)) + self.payload


class Decoder:
    """Cuts a byte stream into messages. Holds at most one message and what was fed last."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def wanted(self) -> int:
        """Returns how many bytes are missing to complete the header or the message at hand (never 0)."""
        have = len(self._buffer)
        if have < XSD_SOCKMSG.size:
            return XSD_SOCKMSG.size - have
        return XSD_SOCKMSG.size + self._length() - have

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yields the messages that `data` completes. Raises ProtocolError for a payload above 4096 bytes."""
        self._buffer += data
        while len(self._buffer) >= XSD_SOCKMSG.size:
            total = XSD_SOCKMSG.size + self._length()
            if len(self._buffer) < total:
                return
            kind, req_id, tx_id, _length = XSD_SOCKMSG.unpack_from(self._buffer)
            payload = bytes(self._buffer[XSD_SOCKMSG.size : total])
            del self._buffer[:total]
            yield Message(kind, req_id, tx_id, payload)

    def _length(self) -> int:
        length: int = XSD_SOCKMSG.unpack_from(self._buffer)[3]
        if length > XENSTORE_PAYLOAD_MAX:
            raise ProtocolError(f"payload of {length} bytes, at most {XENSTORE_PAYLOAD_MAX} are allowed")
        return length


def split_strings(payload: bytes) -> list[bytes]:
    """Returns the NUL-terminated strings of a payload. Raises RefusedError(EINVAL) where the last NUL is missing."""
    if not payload:
        return []
    if payload[-1] != 0:
        raise RefusedError("EINVAL")
    return payload[:-1].split(b"\0")
