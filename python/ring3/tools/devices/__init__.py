"""Devices of a domain as the toolstack sees them: one file for each kind, and `bus` for what all kinds share."""
