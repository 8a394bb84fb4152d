"""The toolstack: what xen-tools is to Xen. It reaches hypervisor and xenstore through `ring3.libs` alone."""
