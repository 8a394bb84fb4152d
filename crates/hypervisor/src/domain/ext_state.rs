//! What of a vCPU is in no `vcpu_guest_context`: XCR0 and the extended state, and MSRs. XEN_DOMCTL_{get,set}vcpuextstate
//! and {get,set}_vcpu_msrs.

use ring3_abi::errno;

use crate::cpuid::{Policy, XCR0_INITIAL, is_xcr0};
use crate::hypervisor::{Error, Hypervisor};
use crate::vcpu::bounce::Running;

/// Bytes of an XSAVE area that has no more than a header.
const MIN_AREA_BYTES: usize = 576;
const XSTATE_BV_AT: usize = 512;
const XCOMP_BV_AT: usize = 520;
const RESERVED_AT: usize = 528;

/// Those that a toolstack moves: SPEC_CTRL, MISC_FEATURES_ENABLES, TSC_AUX. Source: Xen 4.17, but for the address masks
/// of debug registers, which no policy shows.
pub const MOVED_MSRS: [u32; 3] = [0x48, 0x140, 0xc000_0103];

/// XCR0, all that it has been, and the state in XSAVE's standard format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtState {
    /// 0: never set.
    pub xcr0: u64,
    pub xcr0_accum: u64,
    /// Empty if XCR0 was never set: then all of the state is in `vcpu_guest_context`.
    pub area: Vec<u8>,
}

impl Hypervisor {
    /// A vCPU's extended state.
    ///
    /// # Errors
    /// ESRCH, ENOENT.
    pub fn vcpu_ext_state(&self, domid: u16, vcpu: u32) -> Result<ExtState, Error> {
        let (domain, vcpu) = self.guest_vcpu(domid, vcpu)?;
        self.with_paused(&domain, || {
            let mut state = vcpu.state.lock();
            let accum = state.xcr0_accum;
            if accum == 0 {
                return Ok(ExtState { xcr0: 0, xcr0_accum: 0, area: Vec::new() });
            }
            let bytes = Policy::xsave_bytes(accum) as usize;
            let area = state.cpu.xsave().get(..bytes).unwrap_or_default().to_vec();
            Ok(ExtState { xcr0: state.xcr0, xcr0_accum: accum, area })
        })
    }

    /// Gives a vCPU extended state.
    ///
    /// # Errors
    /// ESRCH, ENOENT; EINVAL for components that the policy does not have, EOPNOTSUPP for the compacted format, EIO for
    /// reserved bytes that are not zero.
    pub fn set_vcpu_ext_state(&self, domid: u16, vcpu: u32, ext: &ExtState) -> Result<(), Error> {
        let (domain, vcpu) = self.guest_vcpu(domid, vcpu)?;
        if ext.xcr0_accum == 0 {
            // Never set, as the state says of itself. Without an area there is nothing else to it.
            let is_valid = ext.xcr0 == 0;
            return if is_valid { Ok(()) } else { Err(Error::refused(errno::EINVAL, "XCR0 that was never set")) };
        }
        check(ext, domain.policy().xcr0_max())?;
        self.with_paused(&domain, || {
            let mut state = vcpu.state.lock();
            state.set_xcr0(ext.xcr0);
            state.xcr0_accum = ext.xcr0_accum;
            state.cpu.set_xsave(&ext.area);
            Ok(())
        })
    }

    /// The MSRs that a vCPU has beside its context, but those that are zero.
    ///
    /// # Errors
    /// ESRCH, ENOENT.
    pub fn vcpu_msrs(&self, domid: u16, vcpu: u32) -> Result<Vec<(u32, u64)>, Error> {
        let (domain, vcpu) = self.guest_vcpu(domid, vcpu)?;
        self.with_paused(&domain, || {
            let mut state = vcpu.state.lock();
            let running = Running { hv: self, domain: &domain, vcpu: &vcpu, state: &mut state };
            let values = MOVED_MSRS.iter().filter_map(|&msr| Some((msr, running.read_msr(msr)?)));
            Ok(values.filter(|&(_, value)| value != 0).collect())
        })
    }

    /// Sets one of them.
    ///
    /// # Errors
    /// ESRCH, ENOENT; EINVAL for another, or a value that it cannot have.
    pub fn set_vcpu_msr(&self, domid: u16, vcpu: u32, msr: u32, value: u64) -> Result<(), Error> {
        let (domain, vcpu) = self.guest_vcpu(domid, vcpu)?;
        self.with_paused(&domain, || {
            let mut state = vcpu.state.lock();
            let mut running = Running { hv: self, domain: &domain, vcpu: &vcpu, state: &mut state };
            let is_set = MOVED_MSRS.contains(&msr) && running.write_msr(msr, value).is_some();
            if is_set { Ok(()) } else { Err(Error::refused(errno::EINVAL, format!("MSR {msr:#x}"))) }
        })
    }
}

fn check(ext: &ExtState, max: u64) -> Result<(), Error> {
    let word = |at: usize| {
        let bytes = ext.area.get(at..at + 8).and_then(|bytes| bytes.first_chunk());
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    };
    let is_valid = ext.area.len() >= MIN_AREA_BYTES
        && word(XSTATE_BV_AT) & !ext.xcr0_accum == 0
        && ext.xcr0 & !ext.xcr0_accum == 0
        && is_xcr0(ext.xcr0, max)
        && is_xcr0(ext.xcr0_accum, max)
        && XCR0_INITIAL & !max == 0;
    if !is_valid {
        return Err(Error::refused(errno::EINVAL, "extended state that the policy does not have"));
    }
    if word(XCOMP_BV_AT) != 0 {
        return Err(Error::refused(errno::EOPNOTSUPP, "the compacted format"));
    }
    if ext.area.get(RESERVED_AT..MIN_AREA_BYTES).is_some_and(|bytes| bytes.iter().any(|&byte| byte != 0)) {
        return Err(Error::refused(errno::EIO, "reserved bytes of the header"));
    }
    Ok(())
}
