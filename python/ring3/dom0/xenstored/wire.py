"""The xenstore wire format: messages to and from bytes.

Source: xen/include/public/io/xs_wire.h, struct xsd_sockmsg: type, req_id, tx_id, len, four little-endian u32.
"""

from typing import Final, NamedTuple

from ring3.abi.xs_wire import XENSTORE_PAYLOAD_MAX, XSD_SOCKMSG

HEADER_BYTES: Final = XSD_SOCKMSG.size


class RefusedError(Exception):
    """A request is refused; `errno_name` goes onto the wire as it is."""

    def __init__(self, errno_name: str) -> None:
        super().__init__(errno_name)
        self.errno_name = errno_name


class ProtocolError(Exception):
    """The byte stream cannot be followed any further: the sender gets disconnected."""


class Message(NamedTuple):
    """One request, reply or event. `type` is a plain number: a client may send any."""

    type: int
    req_id: int
    tx_id: int
    payload: bytes

    def encode(self) -> bytes:
        """Returns the header and the payload."""
        return XSD_SOCKMSG.pack(self.type, self.req_id, self.tx_id, len(self.payload)) + self.payload


class Decoder:
    """Cuts a byte stream into messages. Holds at most one incomplete message."""

    def __init__(self, partial: bytes = b"") -> None:
        """Goes on where another decoder stopped: `partial` is what that one held."""
        self._partial = partial

    @property
    def partial(self) -> bytes:
        """What has been fed of a message that is not complete."""
        return self._partial

    def wanted(self) -> int:
        """Returns how many bytes are missing to complete the header or the message at hand (never 0)."""
        have = len(self._partial)
        if have < HEADER_BYTES:
            return HEADER_BYTES - have
        return HEADER_BYTES + _length_at(self._partial, 0) - have

    def feed(self, data: bytes) -> list[Message]:
        """Returns the messages that `data` completes. Raises ProtocolError for a payload above 4096 bytes."""
        buffer = self._partial + data if self._partial else data
        messages = []
        start, end = 0, len(buffer)
        while end - start >= HEADER_BYTES:
            payload = start + HEADER_BYTES
            kind, req_id, tx_id, length = XSD_SOCKMSG.unpack_from(buffer, start)
            if length > XENSTORE_PAYLOAD_MAX:
                raise _too_long(length)
            if payload + length > end:
                break
            start = payload + length
            messages.append(Message(kind, req_id, tx_id, buffer[payload:start]))
        self._partial = buffer[start:] if start else buffer
        return messages


def _length_at(buffer: bytes, start: int) -> int:
    length: int = XSD_SOCKMSG.unpack_from(buffer, start)[3]
    if length > XENSTORE_PAYLOAD_MAX:
        raise _too_long(length)
    return length


def _too_long(length: int) -> ProtocolError:
    return ProtocolError(f"payload of {length} bytes, at most {XENSTORE_PAYLOAD_MAX} are allowed")


def split_strings(payload: bytes) -> list[bytes]:
    """Returns the NUL-terminated strings of a payload. Raises RefusedError(EINVAL) where the last NUL is missing."""
    if not payload:
        return []
    if payload[-1] != 0:
        raise RefusedError("EINVAL")
    return payload[:-1].split(b"\0")


def split_leading_strings(payload: bytes) -> list[bytes]:
    """As split_strings(), for requests with a reserved value at the end: what no NUL follows is left out."""
    return split_strings(payload[: payload.rfind(b"\0") + 1])
