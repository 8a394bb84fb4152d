"""What domain 0 may use of the hypervisor: hypercalls, event channels, foreign memory, xenstore. Xen's ABI, no more."""
