//! Page tables built by hand in a small machine.
