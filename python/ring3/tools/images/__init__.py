"""Disk images with an operating system and the configuration file of a domain that boots it: `ring3 image`."""
