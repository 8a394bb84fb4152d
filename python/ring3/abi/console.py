"""The console ring page. Source: xen/include/public/io/console.h, struct xencons_interface (3088 bytes).

`in` is filled by the back end (in_prod) and emptied by the guest (in_cons); `out` the reverse. Indices run freely,
modulo 2**32.
"""

IN_OFFSET = 0
IN_SIZE = 1024
OUT_OFFSET = 1024
OUT_SIZE = 2048
IN_CONS_OFFSET = 3072
IN_PROD_OFFSET = 3076
OUT_CONS_OFFSET = 3080
OUT_PROD_OFFSET = 3084
XENCONS_INTERFACE_SIZE = 3088
