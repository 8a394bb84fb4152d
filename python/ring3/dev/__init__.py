"""Guest artefacts and the demonstration: what `make demo`, the tests and the benchmark share.

Nothing here is needed to run Ring3, and nothing here imports another part of it: everything goes through the `ring3`
command, as a user's script would.
"""
