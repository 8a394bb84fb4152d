"""The xenstore wire protocol and ring page. Source: xen/include/public/io/xs_wire.h."""

import struct
from enum import IntEnum

XSD_SOCKMSG = struct.Struct("<IIII")
"""Header of every message: type, req_id, tx_id, len of the payload that follows. Source: struct xsd_sockmsg."""


class XsType(IntEnum):
    """Message types, without their XS_ prefix."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22


XENSTORE_PAYLOAD_MAX = 4096
XENSTORE_ABS_PATH_MAX = 3072
XENSTORE_REL_PATH_MAX = 2048

# -- struct xenstore_domain_interface, 2076 bytes; the daemon writes rsp, req_cons, rsp_prod, server_features
XENSTORE_RING_SIZE = 1024
REQ_OFFSET = 0
RSP_OFFSET = 1024
REQ_CONS_OFFSET = 2048
REQ_PROD_OFFSET = 2052
RSP_CONS_OFFSET = 2056
RSP_PROD_OFFSET = 2060
SERVER_FEATURES_OFFSET = 2064
CONNECTION_OFFSET = 2068
ERROR_OFFSET = 2072
XENSTORE_DOMAIN_INTERFACE_SIZE = 2076

XENSTORE_SERVER_FEATURE_RECONNECTION = 1
XENSTORE_SERVER_FEATURE_ERROR = 2
XENSTORE_SERVER_FEATURE_WATCHDEPTH = 4
"""Bit 2. Source: docs/misc/xenstore-ring.txt of Xen; the header of 4.17 has no name for it yet."""
XENSTORE_CONNECTED = 0
XENSTORE_RECONNECT = 1
XENSTORE_ERROR_NONE = 0
XENSTORE_ERROR_COMM = 1
XENSTORE_ERROR_RINGIDX = 2
XENSTORE_ERROR_PROTO = 3
