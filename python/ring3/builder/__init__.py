"""The domain builder: makes a PV domain of a kernel, a ramdisk and a command line, through the Xen ABI alone."""
