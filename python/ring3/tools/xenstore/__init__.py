"""`ring3 xenstore-ls`, `-read`, `-write` and so on: options, output and exit codes of Xen's own xenstore-utils."""
