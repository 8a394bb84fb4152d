"""ring3d, the hypervisor process: boot, the control socket, and the hypercalls that run at a person's pace.

What runs on every guest exit is in `ring3._core`. A cold hypercall is one function here, registered by decorator with
its coverage; see `registry`.
"""
