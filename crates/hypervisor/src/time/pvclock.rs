//! What guests read of time: `vcpu_time_info` and the wall clock in `shared_info`.

use std::sync::atomic::{Ordering, fence};

use ring3_abi::xen::{XEN_PVCLOCK_TSC_STABLE_BIT, vcpu_time_info};
use ring3_machine::{Machine, Mfn};

use super::{Clock, GuestTsc};

/// The clock as a domain reads it, complete (the version is even).
pub fn time_info(clock: &Clock, tsc: &GuestTsc) -> vcpu_time_info {
    let (tsc_timestamp, tsc_to_system_mul, tsc_shift) =
        if tsc.is_emulated() { (tsc.at(0), tsc.mul, tsc.shift) } else { (clock.tsc_base, clock.mul, clock.shift) };
    vcpu_time_info {
        version: 2,
        tsc_timestamp,
        tsc_to_system_mul,
        tsc_shift,
        flags: if clock.is_stable { XEN_PVCLOCK_TSC_STABLE_BIT } else { 0 },
        ..vcpu_time_info::default()
    }
}

/// Fills a `vcpu_time_info` at `offset` of a frame (we write, the guest reads, the version is odd meanwhile).
/// Base and scale never change, so this is needed once for each place a guest registers.
/// Source: xen/include/public/xen.h, struct vcpu_time_info.
pub fn write_time_info(machine: &Machine, clock: &Clock, tsc: &GuestTsc, mfn: Mfn, offset: usize) {
    let Ok(version) = machine.word32(mfn, offset) else { return };
    let odd = version.load(Ordering::Relaxed) | 1;
    version.store(odd, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    let info = time_info(clock, tsc);
    let body = bytemuck::bytes_of(&info).get(8..).unwrap_or_default();
    // A frame was validated by word32; the rest lies within the same 32 bytes.
    let _ = machine.write(mfn, offset + 8, body);
    fence(Ordering::SeqCst);
    version.store(odd.wrapping_add(1), Ordering::SeqCst);
}

/// Fills `wc_*` of a `shared_info` frame: real time at system time 0.
pub fn write_wall_clock(machine: &Machine, clock: &Clock, shared_info: Mfn) {
    const WC_VERSION: usize = 0xc00;
    let Ok(version) = machine.word32(shared_info, WC_VERSION) else { return };
    let odd = version.load(Ordering::Relaxed) | 1;
    version.store(odd, Ordering::SeqCst);
    let (sec, nsec) = (clock.boot_wall.as_secs(), clock.boot_wall.subsec_nanos());
    let mut body = [0u8; 12];
    body[0..4].copy_from_slice(&sec.to_le_bytes()[0..4]);
    body[4..8].copy_from_slice(&nsec.to_le_bytes());
    body[8..12].copy_from_slice(&sec.to_le_bytes()[4..8]);
    let _ = machine.write(shared_info, WC_VERSION + 4, &body);
    fence(Ordering::SeqCst);
    version.store(odd.wrapping_add(1), Ordering::SeqCst);
}
