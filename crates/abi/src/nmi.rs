//! Source: xen/include/public/nmi.h.

use crate::wire;

pub const XENNMI_register_callback: u32 = 0;
pub const XENNMI_unregister_callback: u32 = 1;

wire!(xennmi_callback, 16, { handler_address: u64 = 0, pad: u64 = 8 });
