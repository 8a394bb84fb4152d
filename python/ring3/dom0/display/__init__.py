"""displayd: framebuffers and keyboards of domains (vfb, vkbd), served as VNC.

`rfb` is the protocol and does no I/O, `keysyms` the keys, `pixels` the colours. `keyboard` hands over what is typed,
`viewer` is a connected VNC client, `screen` one domain's display, `server` the daemon.

Source: xen/include/public/io/fbif.h and kbdif.h; RFC 6143.
"""
