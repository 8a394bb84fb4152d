"""A VNC client for tests: asks for the picture, types, points. Written from RFC 6143, not from the server."""

import socket
import struct
import time

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from PIL import Image


class VncError(Exception):
    """The server refused, or said what it may not."""


class VncClient:
    """A connection after its handshake; pixels are what the server has by itself."""

    def __init__(self, port: int, password: str = "", version: bytes = b"RFB 003.008\n") -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=30)
        try:
            self._shake_hands(password, version)
        except BaseException:
            self.sock.close()
            raise
        self.picture = Image.new("RGB", (self.width, self.height))
        self.sock.sendall(struct.pack(">BxHii", 2, 2, 0, -223))

    def _shake_hands(self, password: str, version: bytes) -> None:
        assert self._read(12) == b"RFB 003.008\n"
        self.sock.sendall(version)
        kinds = self._read(self._read(1)[0])
        kind = 2 if password else 1
        if kind not in kinds:
            raise VncError(f"security types {list(kinds)}")
        self.sock.sendall(bytes((kind,)))
        if password:
            key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in password.encode().ljust(8, b"\0"))
            cipher = Cipher(TripleDES(key * 3), modes.ECB()).encryptor()  # noqa: S305
            self.sock.sendall(cipher.update(self._read(16)))
        if self._read(4) != bytes(4):
            raise VncError(self._read(struct.unpack(">I", self._read(4))[0]).decode())
        self.sock.sendall(b"\1")
        self.width, self.height = struct.unpack(">HH", self._read(4))
        self.format = self._read(16)
        self.name = self._read(struct.unpack(">I", self._read(4))[0]).decode()

    def update(self, *, is_incremental: bool) -> Image.Image:
        """Asks for the picture, waits for it, and returns what is known of it."""
        self.sock.sendall(struct.pack(">BBHHHH", 3, is_incremental, 0, 0, self.width, self.height))
        kind, nr_rects = struct.unpack(">BxH", self._read(4))
        assert kind == 0
        for _ in range(nr_rects):
            x, y, width, height, encoding = struct.unpack(">HHHHi", self._read(12))
            if encoding == -223:
                self.width, self.height = width, height
                self.picture = Image.new("RGB", (width, height))
            else:
                assert encoding == 0
                part = Image.frombytes("RGB", (width, height), self._read(4 * width * height), "raw", "BGRX")
                self.picture.paste(part, (x, y))
        return self.picture

    def key(self, keysym: int) -> None:
        """Presses and releases a key."""
        for is_pressed in (1, 0):
            self.sock.sendall(struct.pack(">BBxxI", 4, is_pressed, keysym))

    def type(self, text: str) -> None:
        """Types a text, at a person's pace: the guest's keyboard repeats no key then, and drops none."""
        for letter in text:
            self.key(0xFF0D if letter == "\n" else ord(letter))
            time.sleep(0.02)

    def point(self, x: int, y: int, buttons: int = 0) -> None:
        """Moves the pointer."""
        self.sock.sendall(struct.pack(">BBHH", 5, buttons, x, y))

    def close(self) -> None:
        """Goes."""
        self.sock.close()

    def _read(self, nr_bytes: int) -> bytes:
        data = b""
        while len(data) < nr_bytes:
            part = self.sock.recv(nr_bytes - len(data))
            if not part:
                raise VncError(f"the server went after {len(data)} of {nr_bytes} bytes")
            data += part
        return data
