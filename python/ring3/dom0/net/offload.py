"""What an offload left to do, done here: checksums filled in, large TCP packets cut into segments.

For a front end that takes neither, and for networks that want packets as they are on a wire. Bytes in, bytes out;
what cannot be understood comes out as it is, for its receiver to refuse.
"""

from __future__ import annotations

from typing import Final

_ETH: Final = 14
_IPV4: Final = b"\x08\x00"
_IPV6: Final = b"\x86\xdd"
_VLAN: Final = b"\x81\x00"
_TCP: Final = 6
_UDP: Final = 17
_FIN_PSH: Final = 0x09
_CWR: Final = 0x80
_EXTENSIONS: Final = (0, 43, 60)
"""Hop-by-hop, routing, destination options."""


def ones_sum(data: bytes | bytearray | memoryview, start: int = 0) -> int:
    """Returns the ones' complement sum of 16-bit words, of data that begins at an even offset."""
    # As one number in base 2**16, whose digits' sum is its residue modulo 2**16 - 1.
    raw = bytes(data) + b"\0" if len(data) & 1 else data
    total = int.from_bytes(raw, "big") + start
    return total % 0xFFFF or (0xFFFF if total else 0)


def transport(frame: bytes | bytearray) -> tuple[int, int, int] | None:
    """Returns offset of the IP header, offset of the TCP or UDP header, and the protocol; None for anything else."""
    at = _ETH + 4 if frame[12:14] == _VLAN else _ETH
    kind = frame[at - 2 : at]
    if kind == _IPV4 and len(frame) >= at + 20:
        header_bytes = (frame[at] & 15) * 4
        is_fragment = (frame[at + 6] & 0x3F) | frame[at + 7]
        if header_bytes < 20 or is_fragment:
            return None
        return _checked(frame, at, at + header_bytes, frame[at + 9])
    if kind == _IPV6 and len(frame) >= at + 40:
        protocol, next_at = frame[at + 6], at + 40
        while protocol in _EXTENSIONS and next_at + 8 <= len(frame):
            protocol, next_at = frame[next_at], next_at + 8 + frame[next_at + 1] * 8
        return _checked(frame, at, next_at, protocol)
    return None


def _checked(frame: bytes | bytearray, ip: int, at: int, protocol: int) -> tuple[int, int, int] | None:
    nr_bytes = {_TCP: 20, _UDP: 8}.get(protocol)
    if nr_bytes is None or at + nr_bytes > len(frame):
        return None
    return ip, at, protocol


def _pseudo_sum(frame: bytes | bytearray, ip: int, at: int, protocol: int) -> int:
    nr_bytes = len(frame) - at
    addresses = frame[ip + 12 : ip + 20] if frame[ip] >> 4 == 4 else frame[ip + 8 : ip + 40]
    return ones_sum(addresses, nr_bytes + protocol)


def fill_checksum(frame: bytearray) -> None:
    """Fills in the checksum of TCP or UDP, over what the frame has."""
    found = transport(frame)
    if found is None:
        return
    ip, at, protocol = found
    frame[at:] = frame[at : _end(frame, ip)]  # short frames are padded
    where = at + (16 if protocol == _TCP else 6)
    frame[where : where + 2] = b"\0\0"
    total = ones_sum(memoryview(frame)[at:], _pseudo_sum(frame, ip, at, protocol))
    value = 0xFFFF - total
    if protocol == _UDP and value == 0:
        value = 0xFFFF
    frame[where : where + 2] = value.to_bytes(2, "big")


def _end(frame: bytes | bytearray, ip: int) -> int:
    nr_bytes = int.from_bytes(frame[ip + 2 : ip + 4], "big") if frame[ip] >> 4 == 4 else 0
    if frame[ip] >> 4 == 6:
        nr_bytes = 40 + int.from_bytes(frame[ip + 4 : ip + 6], "big")
    return ip + nr_bytes if nr_bytes else len(frame)


def cut(views: list[memoryview], header: bytes, nr_bytes: int, nr_bytes_max: int) -> list[list[memoryview]]:
    """Cuts a large TCP packet into few frames of at most `nr_bytes_max`, by views: its payload is not copied.

    `header` has the packet's first bytes. The checksum of TCP stays what it was. What cannot be cut comes back whole.
    """
    found = transport(header) if nr_bytes > nr_bytes_max else None
    if found is None or found[2] != _TCP:
        return [views]
    ip, at, _protocol = found
    payload_at = at + (header[at + 12] >> 4) * 4
    if not at + 20 <= payload_at <= min(len(header), nr_bytes_max - 1):
        return [views]
    nr_frames = -(-(nr_bytes - payload_at) // (nr_bytes_max - payload_at))
    size = -(-(nr_bytes - payload_at) // nr_frames)
    payloads = _cut_views(views, payload_at, size)
    frames = []
    for index, payload in enumerate(payloads):
        is_last = index == len(payloads) - 1
        nr_here = nr_bytes - payload_at - index * size if is_last else size
        head = _head_of(header[:payload_at], ip, at, index, index * size, nr_here, is_last=is_last)
        frames.append([memoryview(head), *payload])
    return frames


def _cut_views(views: list[memoryview], start: int, size: int) -> list[list[memoryview]]:
    """Returns what is after `start`, in pieces of `size` bytes and one with the rest."""
    pieces: list[list[memoryview]] = []
    room = 0
    for whole in views:
        view = whole
        if start:
            view, start = whole[start:], max(0, start - len(whole))
        nr_bytes = len(view)
        while nr_bytes > room:
            if room:
                pieces[-1].append(view[:room])
                view, nr_bytes = view[room:], nr_bytes - room
            pieces.append([])
            room = size
        if nr_bytes:
            pieces[-1].append(view)
            room -= nr_bytes
    return pieces


def _head_of(head: bytes, ip: int, at: int, index: int, offset: int, nr_bytes: int, *, is_last: bool) -> bytearray:
    """Returns the headers of the index-th segment of a large packet: so many bytes of its payload, from `offset` on."""
    piece = bytearray(head)
    whole_bytes = len(head) - ip + nr_bytes
    if head[ip] >> 4 == 4:
        number = int.from_bytes(head[ip + 4 : ip + 6], "big") + index
        piece[ip + 2 : ip + 4] = whole_bytes.to_bytes(2, "big")
        piece[ip + 4 : ip + 6] = (number & 0xFFFF).to_bytes(2, "big")
        piece[ip + 10 : ip + 12] = b"\0\0"
        piece[ip + 10 : ip + 12] = (0xFFFF - ones_sum(piece[ip:at])).to_bytes(2, "big")
    else:
        piece[ip + 4 : ip + 6] = (whole_bytes - 40).to_bytes(2, "big")
    sequence = int.from_bytes(head[at + 4 : at + 8], "big") + offset
    piece[at + 4 : at + 8] = (sequence & 0xFFFFFFFF).to_bytes(4, "big")
    if not is_last:
        piece[at + 13] &= ~_FIN_PSH & 0xFF
    if index:
        piece[at + 13] &= ~_CWR & 0xFF
    return piece


def segment(frame: bytes, size: int) -> list[bytearray]:
    """Cuts a large TCP packet into segments of at most `size` bytes each, with all checksums filled in."""
    found = transport(frame)
    if found is None or found[2] != _TCP or size == 0:
        return [bytearray(frame)]
    ip, at, _protocol = found
    payload_at = at + (frame[at + 12] >> 4) * 4
    if not at + 20 <= payload_at <= len(frame):
        return [bytearray(frame)]
    head, payload = frame[:payload_at], memoryview(frame)[payload_at:]
    segments = []
    for index, start in enumerate(range(0, len(payload), size) or [0]):
        part = payload[start : start + size]
        piece = _head_of(head, ip, at, index, start, len(part), is_last=start + size >= len(payload))
        piece += part
        fill_checksum(piece)
        segments.append(piece)
    return segments
