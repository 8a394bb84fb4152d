"""Event channel operations and their arguments. Source: xen/include/public/event_channel.h."""

import ctypes
from typing import ClassVar

EVTCHNOP_bind_interdomain = 0
EVTCHNOP_bind_virq = 1
EVTCHNOP_bind_pirq = 2
EVTCHNOP_close = 3
EVTCHNOP_send = 4
EVTCHNOP_status = 5
EVTCHNOP_alloc_unbound = 6
EVTCHNOP_bind_ipi = 7
EVTCHNOP_bind_vcpu = 8
EVTCHNOP_unmask = 9
EVTCHNOP_reset = 10
EVTCHNOP_init_control = 11
EVTCHNOP_expand_array = 12
EVTCHNOP_set_priority = 13

EVTCHNSTAT_closed = 0
EVTCHNSTAT_unbound = 1
EVTCHNSTAT_interdomain = 2
EVTCHNSTAT_pirq = 3
EVTCHNSTAT_virq = 4
EVTCHNSTAT_ipi = 5

EVTCHN_2L_NR_CHANNELS = 4096


class evtchn_alloc_unbound(ctypes.LittleEndianStructure):
    """8 bytes. In: dom, remote_dom; out: port."""

    _fields_: ClassVar = [("dom", ctypes.c_uint16), ("remote_dom", ctypes.c_uint16), ("port", ctypes.c_uint32)]
    dom: int
    remote_dom: int
    port: int


class evtchn_bind_interdomain(ctypes.LittleEndianStructure):
    """12 bytes. In: remote_dom, remote_port; out: local_port."""

    _fields_: ClassVar = [
        ("remote_dom", ctypes.c_uint16),
        ("_pad", ctypes.c_uint16),
        ("remote_port", ctypes.c_uint32),
        ("local_port", ctypes.c_uint32),
    ]
    remote_dom: int
    remote_port: int
    local_port: int


class evtchn_bind_virq(ctypes.LittleEndianStructure):
    """12 bytes. In: virq, vcpu; out: port."""

    _fields_: ClassVar = [("virq", ctypes.c_uint32), ("vcpu", ctypes.c_uint32), ("port", ctypes.c_uint32)]
    virq: int
    vcpu: int
    port: int


class evtchn_port_op(ctypes.LittleEndianStructure):
    """4 bytes: struct evtchn_close, evtchn_send and evtchn_unmask."""

    _fields_: ClassVar = [("port", ctypes.c_uint32)]
    port: int


class evtchn_status(ctypes.LittleEndianStructure):
    """24 bytes. In: dom, port; out: the rest; `u` holds dom16 + port32 at 4, pirq, or virq by status."""

    _fields_: ClassVar = [
        ("dom", ctypes.c_uint16),
        ("_pad", ctypes.c_uint16),
        ("port", ctypes.c_uint32),
        ("status", ctypes.c_uint32),
        ("vcpu", ctypes.c_uint32),
        ("u0", ctypes.c_uint32),
        ("u1", ctypes.c_uint32),
    ]
    dom: int
    port: int
    status: int
    vcpu: int
    u0: int
    u1: int
