"""xenstored: the hierarchical store by which domains, toolstack and back ends find each other.

`wire`, `perms`, `store`, `transactions`, `watches` and `requests` are the protocol without I/O; `ring` and `server`
move the bytes. Source: docs/misc/xenstore.txt of Xen, xen/include/public/io/xs_wire.h.
"""
