//! Source: xen/include/public/event_channel.h.

use crate::wire;

pub const EVTCHNOP_bind_interdomain: u32 = 0;
pub const EVTCHNOP_bind_virq: u32 = 1;
pub const EVTCHNOP_bind_pirq: u32 = 2;
pub const EVTCHNOP_close: u32 = 3;
pub const EVTCHNOP_send: u32 = 4;
pub const EVTCHNOP_status: u32 = 5;
pub const EVTCHNOP_alloc_unbound: u32 = 6;
pub const EVTCHNOP_bind_ipi: u32 = 7;
pub const EVTCHNOP_bind_vcpu: u32 = 8;
pub const EVTCHNOP_unmask: u32 = 9;
pub const EVTCHNOP_reset: u32 = 10;
pub const EVTCHNOP_init_control: u32 = 11;
pub const EVTCHNOP_expand_array: u32 = 12;
pub const EVTCHNOP_set_priority: u32 = 13;
pub const EVTCHNOP_reset_cont: u32 = 14;

pub const EVTCHNSTAT_closed: u32 = 0;
pub const EVTCHNSTAT_unbound: u32 = 1;
pub const EVTCHNSTAT_interdomain: u32 = 2;
pub const EVTCHNSTAT_pirq: u32 = 3;
pub const EVTCHNSTAT_virq: u32 = 4;
pub const EVTCHNSTAT_ipi: u32 = 5;

pub const EVTCHN_2L_NR_CHANNELS: u32 = 4096;

pub const EVTCHN_FIFO_PRIORITY_MAX: u32 = 0;
pub const EVTCHN_FIFO_PRIORITY_DEFAULT: u32 = 7;
pub const EVTCHN_FIFO_PRIORITY_MIN: u32 = 15;
pub const EVTCHN_FIFO_MAX_QUEUES: usize = 16;
pub const EVTCHN_FIFO_PENDING: u32 = 31;
pub const EVTCHN_FIFO_MASKED: u32 = 30;
pub const EVTCHN_FIFO_LINKED: u32 = 29;
pub const EVTCHN_FIFO_BUSY: u32 = 28;
pub const EVTCHN_FIFO_LINK_BITS: u8 = 17;
pub const EVTCHN_FIFO_LINK_MASK: u32 = (1 << 17) - 1;
pub const EVTCHN_FIFO_NR_CHANNELS: u32 = 1 << 17;

wire!(evtchn_alloc_unbound, 8, { dom: u16 = 0, remote_dom: u16 = 2, port: u32 = 4 });
wire!(evtchn_bind_interdomain, 12, { remote_dom: u16 = 0, _pad: u16 = 2, remote_port: u32 = 4, local_port: u32 = 8 });
wire!(evtchn_bind_virq, 12, { virq: u32 = 0, vcpu: u32 = 4, port: u32 = 8 });
wire!(evtchn_bind_pirq, 12, { pirq: u32 = 0, flags: u32 = 4, port: u32 = 8 });
wire!(evtchn_bind_ipi, 8, { vcpu: u32 = 0, port: u32 = 4 });
wire!(evtchn_close, 4, { port: u32 = 0 });
wire!(evtchn_send, 4, { port: u32 = 0 });
wire!(evtchn_unmask, 4, { port: u32 = 0 });
wire!(evtchn_bind_vcpu, 8, { port: u32 = 0, vcpu: u32 = 4 });
wire!(evtchn_init_control, 24, {
    control_gfn: u64 = 0, offset: u32 = 8, vcpu: u32 = 12, link_bits: u8 = 16, _pad: [u8; 7] = 17,
});
wire!(evtchn_expand_array, 8, { array_gfn: u64 = 0 });
wire!(evtchn_set_priority, 8, { port: u32 = 0, priority: u32 = 4 });
wire!(evtchn_fifo_control_block, 72, { ready: u32 = 0, _rsvd: u32 = 4, head: [u32; 16] = 8 });
wire!(evtchn_reset, 2, { dom: u16 = 0 });
wire!(
    /// `u` holds, by status: unbound {dom u16}, interdomain {dom u16, pad, port u32}, pirq or virq {u32}.
    evtchn_status, 24,
    { dom: u16 = 0, _pad: u16 = 2, port: u32 = 4, status: u32 = 8, vcpu: u32 = 12, u: [u32; 2] = 16 }
);
