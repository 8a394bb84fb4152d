"""The display's parts without a domain: VNC's handshake and messages, keys, pixels, what front ends say."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ring3.abi import fbif
from ring3.abi.fbif import FramebufferPage, Geometry, Update
from ring3.dom0.display.keyboard import Keyboard
from ring3.dom0.display.keymaps import NAMES, Level, keymap
from ring3.dom0.display.keysyms import key_of_scancode, named_key
from ring3.dom0.display.pixels import convert
from ring3.dom0.display.rfb import KeyEvent, PixelFormat, PointerEvent, RfbError, RfbServer, UpdateRequest
from ring3.tools.devices.vfb import KEYMAPS


def ready() -> RfbServer:
    server = RfbServer(800, 600, "guest")
    server.receive(b"RFB 003.008\n\1\1")
    assert server.is_ready
    server.outgoing.clear()
    return server


def test_handshake_byte_by_byte() -> None:
    server = RfbServer(800, 600, "guest")
    for byte in b"RFB 003.008\n\1\1":
        assert server.receive(bytes((byte,))) == []
    sent = bytes(server.outgoing)
    assert sent.startswith(b"RFB 003.008\n\1\1\0\0\0\0" + struct.pack(">HH", 800, 600))
    assert sent.endswith(b"\0\0\0\5guest") and server.is_ready


def test_old_clients_are_served() -> None:
    server = RfbServer(8, 8, "x")
    server.receive(b"RFB 003.003\n\1")
    assert bytes(server.outgoing).startswith(b"RFB 003.008\n\0\0\0\1\0\x08\0\x08") and server.is_ready


def test_wrong_password_is_told_and_ends_it() -> None:
    server = RfbServer(8, 8, "x", b"secret")
    server.receive(b"RFB 003.008\n\2")
    with pytest.raises(RfbError, match="wrong password"):
        server.receive(bytes(16))
    assert bytes(server.outgoing).endswith(b"\0\0\0\1\0\0\0\x0ewrong password")
    assert not server.is_ready
    other = RfbServer(8, 8, "x", b"secret")
    with pytest.raises(RfbError):
        other.receive(b"RFB 003.008\n\1")


def test_messages_become_wishes() -> None:
    data = (
        struct.pack(">BBHHHH", 3, 1, 1, 2, 3, 4) + struct.pack(">BBxxI", 4, 1, 0x61) + struct.pack(">BBHH", 5, 4, 9, 8)
    )
    data += struct.pack(">BxxxI", 6, 3) + b"abc" + struct.pack(">BxHii", 2, 2, 0, -223)
    server = ready()
    assert server.receive(data) == [UpdateRequest(True, 1, 2, 3, 4), KeyEvent(True, 0x61), PointerEvent(4, 9, 8)]
    assert server.can_resize


@pytest.mark.parametrize(
    "data",
    [
        b"\x63",
        struct.pack(">BxH", 2, 0xFFFF),
        struct.pack(">BxxxI", 6, 0xFFFFFFFF),
        b"\0\0\0\0" + PixelFormat(bits=24).pack(),
        b"\0\0\0\0" + PixelFormat(is_true_colour=False).pack(),
        b"\0\0\0\0" + PixelFormat(shifts=(99, 8, 0)).pack(),
    ],
)
def test_messages_that_make_no_sense_end_it(data: bytes) -> None:
    with pytest.raises(RfbError):
        ready().receive(data)


@given(st.binary(max_size=300))
def test_hostile_bytes_of_clients_do_no_more_than_end_it(data: bytes) -> None:
    for server in (RfbServer(8, 8, "x"), RfbServer(8, 8, "x", b"p"), ready()):
        try:
            server.receive(data)
        except RfbError:
            continue


@pytest.mark.parametrize(
    ("wanted", "pixel"),
    [
        (PixelFormat(), b"\x03\x02\x01"),
        (PixelFormat(shifts=(0, 8, 16)), b"\x01\x02\x03"),
        (PixelFormat(is_big_endian=True, shifts=(16, 8, 0)), b"\x01\x02\x03"),
    ],
)
def test_pixels_come_as_the_client_wants_them(wanted: PixelFormat, pixel: bytes) -> None:
    geometry = Geometry(3, 2, 16, 32)
    lines = (b"\0\0\0\0" + b"\x03\x02\x01\0" * 2 + b"pad.") * 2
    assert convert(lines, geometry, 1, 2, wanted).count(pixel) == 4
    assert len(convert(lines, geometry, 1, 2, wanted)) == 16


def test_sixteen_bits_either_way() -> None:
    five_six_five = PixelFormat(16, 16, False, True, (31, 63, 31), (11, 5, 0))
    lines = struct.pack("<II", 0xFF0000, 0x00FF00)
    assert convert(lines, Geometry(2, 1, 8, 32), 0, 2, five_six_five) == struct.pack("<HH", 0xF800, 0x07E0)
    shown = convert(struct.pack("<HH", 0xF800, 0x001F), Geometry(2, 1, 4, 16), 0, 2, PixelFormat(shifts=(0, 8, 16)))
    assert Image.frombytes("RGB", (2, 1), shown, "raw", "RGBX").tobytes() == b"\xff\0\0\0\0\xff"


@pytest.mark.parametrize(
    ("name", "sign", "key"),
    [
        ("en-us", "a", (30, Level.PLAIN)),
        ("en-us", "A", (30, Level.SHIFT)),
        ("en-us", "0", (11, Level.PLAIN)),
        ("en-us", ")", (11, Level.SHIFT)),
        ("en-us", "`", (41, Level.PLAIN)),
        ("en-us", "\\", (43, Level.PLAIN)),
        ("en-us", "/", (53, Level.PLAIN)),
        ("en-gb", "\\", (86, Level.PLAIN)),
        ("en-gb", "€", (5, Level.ALTGR)),
        ("de", "z", (21, Level.PLAIN)),
        ("de", "Y", (44, Level.SHIFT)),
        ("de", "ß", (12, Level.PLAIN)),
        ("de", "@", (16, Level.ALTGR)),
        ("de", "{", (8, Level.ALTGR)),
        ("de", "\\", (12, Level.ALTGR)),
        ("de", "~", (27, Level.ALTGR)),
        ("de", "|", (86, Level.ALTGR)),
        ("de", "µ", (50, Level.ALTGR)),
        ("de", "\ufe51", (13, Level.PLAIN)),
        ("fr", "a", (16, Level.PLAIN)),
        ("fr", "1", (2, Level.SHIFT)),
        ("fr", "@", (11, Level.ALTGR)),
        ("fr", "]", (12, Level.ALTGR)),
        ("fr", "m", (39, Level.PLAIN)),
        ("es", "ñ", (39, Level.PLAIN)),
        ("es", "[", (26, Level.ALTGR)),
        ("es", "{", (40, Level.ALTGR)),
        ("es", "ç", (43, Level.PLAIN)),
        ("it", "@", (39, Level.ALTGR)),
        ("it", "[", (26, Level.ALTGR)),
        ("it", "ù", (43, Level.PLAIN)),
    ],
)
def test_signs_have_keys(name: str, sign: str, key: tuple[int, Level]) -> None:
    assert keymap(name)[ord(sign)] == key


@pytest.mark.parametrize("name", NAMES)
def test_every_printable_sign_has_a_key_of_its_own(name: str) -> None:
    # An Italian keyboard has neither: there they are typed by their numbers.
    signs = set(range(0x21, 0x7F)) - ({ord(sign) for sign in "`~{}"} if name == "it" else set())
    found = {sign: keymap(name).get(sign) for sign in signs}
    assert None not in found.values(), found
    assert len(set(found.values())) == len(found)
    assert (0x20AC in keymap(name)) is (name != "en-us")
    assert set(NAMES) == set(KEYMAPS), "the toolstack knows what there is"


@pytest.mark.parametrize(
    ("code", "key"), [(30, 30), (0x58, 88), (0x9D, 97), (0xC8, 103), (0xDB, 125), (0, None), (0x59, None), (0xFF, None)]
)
def test_scancodes_are_keys(code: int, key: int | None) -> None:
    assert key_of_scancode(code) == key
    assert named_key(0xFF0D) == 28


class Page:
    """A front end's page."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(4096))

    def close(self) -> None:
        """Has nothing to give back."""

    def keys(self) -> list[tuple[int, int]]:
        """Returns key and whether it is pressed, of each event so far."""
        nr = struct.unpack_from("<I", self.view, 4)[0]
        events = [bytes(self.view[fbif.IN_OFFSET + 40 * at :][:8]) for at in range(nr)]
        return [(struct.unpack_from("<I", event, 4)[0], event[1]) for event in events]


def test_modifiers_that_are_missing_are_pressed() -> None:
    page, keyboard = Page(), Keyboard()
    keyboard.connect(page, is_absolute=True)  # type: ignore[arg-type]
    keyboard.set_keymap("de")
    for is_pressed in (True, False):
        keyboard.type(ord("@"), is_pressed=is_pressed)
    assert keyboard.flush(1)
    assert page.keys() == [(100, 1), (16, 1), (100, 0), (16, 0)]
    keyboard.type(0xFE03, is_pressed=True)
    keyboard.type(ord("@"), is_pressed=True)
    keyboard.scan(0x9D, is_pressed=True)
    keyboard.scan(0x9D, is_pressed=True)
    keyboard.release_all()
    keyboard.flush(1)
    assert page.keys()[4:] == [(100, 1), (16, 1), (97, 1), (97, 1), (100, 0), (16, 0), (97, 0)]


def test_client_that_knows_scancodes_is_told_and_sends_them() -> None:
    server = RfbServer(4, 3, "d")
    server.receive(b"RFB 003.008\n\1\1")
    assert server.receive(struct.pack(">BxHii", 2, 2, 0, -258)) == []
    told = server.update([(0, 0, 1, 1, b"wxyz")])
    assert told == struct.pack(">BxHHHHHiHHHHi", 0, 2, 0, 0, 0, 0, -258, 0, 0, 1, 1, 0) + b"wxyz"
    assert server.update([])[2:4] == bytes(2), "once"
    event = struct.pack(">BBHII", 255, 0, 1, 0x61, 30)
    assert server.receive(event[:7]) == []
    assert server.receive(event[7:]) == [KeyEvent(True, 0x61, 30)]
    with pytest.raises(RfbError):
        server.receive(b"\xff\1")


def test_keys_without_a_front_end_are_dropped() -> None:
    keyboard = Keyboard()
    keyboard.type(0x41, is_pressed=True)
    keyboard.point(1, 2, 1)
    assert not keyboard.flush(1)


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(0, 600, 3200, 32),
        Geometry(-1, 600, 3200, 32),
        Geometry(800, 600, 3199, 32),
        Geometry(800, 601, 3200, 32),
        Geometry(800, 600, 3200, 31),
        Geometry(800, 600, 3200, 32, -1),
        Geometry(800, 600, 3200, 32, 1),
        Geometry(1 << 30, 1 << 30, 1 << 31, 32),
    ],
)
def test_geometry_that_does_not_fit_is_told(geometry: Geometry) -> None:
    assert Geometry(800, 600, 3200, 32).check(800 * 600 * 4) is None
    assert geometry.check(800 * 600 * 4) is not None


@given(st.binary(max_size=300), st.integers(0, 0xFFFFFFFF), st.integers(0, fbif.OUT_LENGTH))
def test_hostile_pages_are_read(part: bytes, cons: int, nr: int) -> None:
    page = (part or b"\2").ljust(40, b"\xff") * 128
    page = page[:4096].ljust(4096, b"\3")
    parsed = FramebufferPage.parse(page)
    assert len(parsed.pd) == fbif.NR_PD
    for event in fbif.out_events(page, cons, cons + nr & 0xFFFFFFFF):
        assert isinstance(event, Update | Geometry)
