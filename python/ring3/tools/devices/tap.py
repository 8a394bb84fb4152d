"""A tap device of the host on one of its bridges, as Xen's vif-bridge script makes it for a vif. Needs CAP_NET_ADMIN.

Source: Linux, linux/if_tun.h, linux/if.h, linux/sockios.h.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Final

from ring3.errors import ConfigError, Error

_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6 = 1, 2, 4
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFMTU = 0x8913, 0x8914, 0x8922
_SIOCBRADDIF: Final = 0x89A2
_IFF_UP: Final = 1
_VNET_HEADER_BYTES: Final = 10


def open_tap(name: str, bridge: str, mtu: int) -> int:
    """Makes a tap of that name on that bridge, up; returns its descriptor, with which it goes. Raises Error."""
    if not Path("/sys/class/net", bridge, "bridge").is_dir():
        raise ConfigError(f"the host has no bridge {bridge}", key="vif")
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Error(f"/dev/net/tun: {error.strerror} (a bridge needs it, and CAP_NET_ADMIN)") from error
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", _VNET_HEADER_BYTES))
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            if mtu:
                fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si20x", name.encode(), mtu))
            index = socket.if_nametoindex(name)
            fcntl.ioctl(control, _SIOCBRADDIF, struct.pack("16si20x", bridge.encode(), index))
            (flags,) = struct.unpack_from(
                "H", fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("40s", name.encode())), 16
            )
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags | _IFF_UP))
    except OSError as error:
        os.close(fd)
        raise Error(f"the tap {name} on {bridge}: {error.strerror} (it needs CAP_NET_ADMIN)") from error
    return fd
