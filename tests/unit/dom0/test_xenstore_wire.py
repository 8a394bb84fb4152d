"""Messages from and to bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring3.dom0.xenstored.wire import Decoder, Message, ProtocolError, RefusedError, split_strings

messages = st.builds(
    Message,
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=300),
)


@given(st.lists(messages, max_size=8), st.integers(1, 50))
def test_stream_decodes_to_what_was_encoded_in_pieces_of_any_size(sent: list[Message], size: int) -> None:
    stream = b"".join(message.encode() for message in sent)
    decoder = Decoder()
    received: list[Message] = []
    for start in range(0, len(stream), size):
        received += decoder.feed(stream[start : start + size])
    assert received == sent


@given(st.lists(messages, min_size=1, max_size=4))
def test_reading_what_is_wanted_ends_exactly_at_each_message(sent: list[Message]) -> None:
    stream = b"".join(message.encode() for message in sent)
    decoder = Decoder()
    received: list[Message] = []
    while stream:
        nr = decoder.wanted()
        received += decoder.feed(stream[:nr])
        stream = stream[nr:]
    assert received == sent


def test_payload_of_4096_bytes_is_accepted_and_one_more_is_not() -> None:
    assert list(Decoder().feed(Message(2, 1, 0, bytes(4096)).encode())) == [Message(2, 1, 0, bytes(4096))]
    with pytest.raises(ProtocolError):
        list(Decoder().feed(b"\2\0\0\0" + bytes(8) + (4097).to_bytes(4, "little")))


def test_strings_need_their_last_terminator() -> None:
    assert split_strings(b"") == []
    assert split_strings(b"a\0b\0") == [b"a", b"b"]
    assert split_strings(b"\0") == [b""]
    with pytest.raises(RefusedError):
        split_strings(b"a\0b")
