//! CPU policies as arrays of `xen_cpuid_leaf_t` and `xen_msr_entry_t`.
//! Source: xen/include/public/arch-x86/xen.h.

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ring3_abi::errno;
use ring3_hypervisor::cpuid::{LeafKey, Policy};

use crate::errors::refused;

/// leaf, subleaf, a, b, c, d: 24 bytes.
type Leaf = [u32; 6];
/// idx, flags, low and high half of the value: 16 bytes.
type Msr = [u32; 4];

/// A policy's leaves and MSRs.
pub type Packed<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>);

pub fn pack<'py>(py: Python<'py>, policy: &Policy) -> Packed<'py> {
    let leaves: Vec<Leaf> = policy.leaves().map(|((leaf, sub), [a, b, c, d])| [leaf, sub, a, b, c, d]).collect();
    let half = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap_or(0);
    let msrs: Vec<Msr> = policy.msrs().map(|(msr, value)| [msr, 0, half(value), half(value >> 32)]).collect();
    (PyBytes::new(py, bytemuck::cast_slice(&leaves)), PyBytes::new(py, bytemuck::cast_slice(&msrs)))
}

fn array<T: bytemuck::AnyBitPattern>(raw: &[u8]) -> PyResult<Vec<T>> {
    let chunks = raw.chunks_exact(size_of::<T>());
    if !chunks.remainder().is_empty() {
        return Err(refused(errno::EINVAL, "length is no multiple of an entry's"));
    }
    Ok(chunks.map(bytemuck::pod_read_unaligned).collect())
}

pub fn unpack_leaves(raw: &[u8]) -> PyResult<Vec<(LeafKey, [u32; 4])>> {
    let leaves: Vec<Leaf> = array(raw)?;
    Ok(leaves.into_iter().map(|[leaf, sub, a, b, c, d]| ((leaf, sub), [a, b, c, d])).collect())
}

/// Number, flags, value.
pub fn unpack_msrs(raw: &[u8]) -> PyResult<Vec<(u32, u32, u64)>> {
    let msrs: Vec<Msr> = array(raw)?;
    Ok(msrs.into_iter().map(|[msr, flags, low, high]| (msr, flags, u64::from(low) | u64::from(high) << 32)).collect())
}
