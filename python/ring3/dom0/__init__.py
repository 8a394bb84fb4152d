"""The services of domain 0: xenstored, the console daemon, back ends.

They reach the hypervisor through `ring3.libs` alone.
"""
