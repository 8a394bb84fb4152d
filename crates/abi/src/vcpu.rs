//! Source: xen/include/public/vcpu.h.

use crate::wire;

pub const VCPUOP_initialise: u32 = 0;
pub const VCPUOP_up: u32 = 1;
pub const VCPUOP_down: u32 = 2;
pub const VCPUOP_is_up: u32 = 3;
pub const VCPUOP_get_runstate_info: u32 = 4;
pub const VCPUOP_register_runstate_memory_area: u32 = 5;
pub const VCPUOP_set_periodic_timer: u32 = 6;
pub const VCPUOP_stop_periodic_timer: u32 = 7;
pub const VCPUOP_set_singleshot_timer: u32 = 8;
pub const VCPUOP_stop_singleshot_timer: u32 = 9;
pub const VCPUOP_register_vcpu_info: u32 = 10;
pub const VCPUOP_send_nmi: u32 = 11;
pub const VCPUOP_get_physid: u32 = 12;
pub const VCPUOP_register_vcpu_time_memory_area: u32 = 13;

pub const XEN_RUNSTATE_UPDATE: u64 = 1 << 63;
pub const RUNSTATE_running: u32 = 0;
pub const RUNSTATE_runnable: u32 = 1;
pub const RUNSTATE_blocked: u32 = 2;
pub const RUNSTATE_offline: u32 = 3;

pub const VCPU_SSHOTTMR_future: u32 = 1;

wire!(vcpu_runstate_info, 48, { state: u32 = 0, _pad: u32 = 4, state_entry_time: u64 = 8, time: [u64; 4] = 16 });
wire!(vcpu_register_runstate_memory_area, 8, { addr: u64 = 0 });
wire!(vcpu_register_time_memory_area, 8, { addr: u64 = 0 });
wire!(vcpu_set_periodic_timer, 8, { period_ns: u64 = 0 });
wire!(vcpu_set_singleshot_timer, 16, { timeout_abs_ns: u64 = 0, flags: u32 = 8, _pad: u32 = 12 });
wire!(vcpu_register_vcpu_info, 16, { mfn: u64 = 0, offset: u32 = 8, rsvd: u32 = 12 });
wire!(vcpu_get_physid, 8, { phys_id: u64 = 0 });
