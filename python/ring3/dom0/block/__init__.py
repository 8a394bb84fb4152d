"""The block back end: disks of domains, from files and block devices of the host.

`server` follows the devices in xenstore and runs the loop; `backend` is a device there, `connect` its meeting with the
front end; `vbd` is a connected disk with its queues; `requests` reads what a ring slot asks for; `ring` and `journal`
are a queue's memory, shared with the guest and with a successor; `grants` holds the guest's pages; `image` and `pool`
do the I/O.
"""
