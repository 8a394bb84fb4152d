"""Ring3: Xen's job done by an ordinary Linux process."""

__version__ = "0.1.0"
