//! Source: xen/include/public/sched.h.

use crate::wire;

pub const SCHEDOP_yield: u32 = 0;
pub const SCHEDOP_block: u32 = 1;
pub const SCHEDOP_shutdown: u32 = 2;
pub const SCHEDOP_poll: u32 = 3;
pub const SCHEDOP_remote_shutdown: u32 = 4;
pub const SCHEDOP_shutdown_code: u32 = 5;
pub const SCHEDOP_watchdog: u32 = 6;
pub const SCHEDOP_pin_override: u32 = 7;

pub const SHUTDOWN_poweroff: u32 = 0;
pub const SHUTDOWN_reboot: u32 = 1;
pub const SHUTDOWN_suspend: u32 = 2;
pub const SHUTDOWN_crash: u32 = 3;
pub const SHUTDOWN_watchdog: u32 = 4;
pub const SHUTDOWN_soft_reset: u32 = 5;
pub const SHUTDOWN_MAX: u32 = 5;

wire!(sched_shutdown, 4, { reason: u32 = 0 });
wire!(sched_poll, 24, { ports: u64 = 0, nr_ports: u32 = 8, _pad: u32 = 12, timeout: u64 = 16 });
wire!(sched_watchdog, 8, { id: u32 = 0, timeout: u32 = 4 });
wire!(sched_remote_shutdown, 8, { domain_id: u16 = 0, _pad: u16 = 2, reason: u32 = 4 });
