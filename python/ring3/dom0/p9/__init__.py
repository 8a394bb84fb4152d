"""9pfsd: host directories shared with domains over Xen's 9p transport, by the protocol 9P2000.L.

`messages` and `fids` do no I/O; `tree` is all that touches the host's files, `credentials` what owners and modes they
show; `session` answers requests; `journal` is what a successor needs to go on; `device` and `server` move bytes.

Source: docs/misc/9pfs.pandoc and xen/include/public/io/9pfs.h of Xen; Linux, include/net/9p/9p.h; the protocol's
description by diod (protocol.md).
"""
