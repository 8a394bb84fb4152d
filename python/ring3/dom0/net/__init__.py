"""The network back end: what network devices of domains (vifs) are connected to.

`packet`, `tx`, `rx`, `switch`, `offload` are the protocol and do no I/O; `plumbing` makes the hypercalls of a turn,
`device` follows a device's states in xenstore, `user` and `tap` are the ways out of the machine, `server` is the loop.
docs/design/0010-network.md says why it is so.
"""
