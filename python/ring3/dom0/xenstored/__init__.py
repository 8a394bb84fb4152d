"""xenstored: the hierarchical store by which domains, toolstack and back ends find each other.

The protocol does no I/O: `wire`, `paths`, `perms`, `quota`, `store`, `transactions`, `watches`, `clients`, `core`,
`control` and the `*_requests`. What makes the state outlive the daemon does none either: `recorder`, `journal`,
`stream`, `image`. The rest move bytes: `ring`, `rings`, `socket_client`, `state_file`, `takeover`, `live_update` and
`server`.

Source: docs/misc/xenstore.txt of Xen, xen/include/public/io/xs_wire.h.
"""
