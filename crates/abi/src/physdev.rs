//! Source: xen/include/public/physdev.h.

use crate::wire;

pub const PHYSDEVOP_irq_status_query: u32 = 5;
pub const PHYSDEVOP_set_iopl: u32 = 6;
pub const PHYSDEVOP_set_iobitmap: u32 = 7;
pub const PHYSDEVOP_eoi: u32 = 12;
pub const PHYSDEVOP_map_pirq: u32 = 13;
pub const PHYSDEVOP_unmap_pirq: u32 = 14;
pub const PHYSDEVOP_pirq_eoi_gmfn_v1: u32 = 17;
pub const PHYSDEVOP_pirq_eoi_gmfn_v2: u32 = 28;

wire!(physdev_set_iopl, 4, { iopl: u32 = 0 });
wire!(physdev_set_iobitmap, 16, { bitmap: u64 = 0, nr_ports: u32 = 8, _pad: u32 = 12 });
/// Layout of `struct physdev_op`, the compat form: command, then the union at 8.
pub const PHYSDEV_OP_ARG_OFFSET: u64 = 8;
