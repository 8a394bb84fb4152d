//! Source: xen/include/public/callback.h.

use crate::wire;

pub const CALLBACKTYPE_event: u16 = 0;
pub const CALLBACKTYPE_failsafe: u16 = 1;
pub const CALLBACKTYPE_syscall: u16 = 2;
pub const CALLBACKTYPE_sysenter_deprecated: u16 = 3;
pub const CALLBACKTYPE_nmi: u16 = 4;
pub const CALLBACKTYPE_sysenter: u16 = 5;
pub const CALLBACKTYPE_syscall32: u16 = 7;
pub const CALLBACKF_mask_events: u16 = 1;
pub const CALLBACKOP_register: u32 = 0;
pub const CALLBACKOP_unregister: u32 = 1;

wire!(callback_register, 16, { r#type: u16 = 0, flags: u16 = 2, _pad: u32 = 4, address: u64 = 8 });
wire!(callback_unregister, 4, { r#type: u16 = 0, _unused: u16 = 2 });
