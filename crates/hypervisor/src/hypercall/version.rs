//! xen_version.

use ring3_abi::errno;
use ring3_abi::features::*;
use ring3_abi::hypercall::__HYPERVISOR_xen_version;
use ring3_abi::version::*;
use ring3_abi::xen::VMASST_TYPE_pae_extended_cr3;

use super::{Caller, HypercallResult};

pub const XEN_MAJOR: u32 = 4;
pub const XEN_MINOR: u32 = 17;

const EXTRAVERSION: &[u8] = b".ring3";
const CAPABILITIES: &[u8] = b"xen-3.0-x86_64 ";
const CHANGESET: &[u8] = concat!("ring3 ", env!("CARGO_PKG_VERSION")).as_bytes();
const COMPILER: &[u8] = b"rustc";
const VIRT_START: u64 = ring3_abi::arch_x86::MACH2PHYS_VIRT_START;

/// `text` in a field of `N` bytes, NUL-padded.
fn padded<const N: usize>(text: &[u8]) -> [u8; N] {
    let mut field = [0u8; N];
    field.iter_mut().zip(text.iter().take(N - 1)).for_each(|(to, from)| *to = *from);
    field
}

impl Caller<'_> {
    /// xen_version.
    pub(super) fn xen_version(&self, cmd: u32, arg: u64) -> HypercallResult {
        // Linux calls version 0 thousands of times to have its events delivered: it is the first test.
        self.hv.table.count(__HYPERVISOR_xen_version, cmd);
        if cmd == XENVER_version {
            return Ok(i64::from((XEN_MAJOR << 16) | XEN_MINOR));
        }
        match cmd {
            XENVER_extraversion => self.write_bytes(arg, &padded::<XEN_EXTRAVERSION_LEN>(EXTRAVERSION))?,
            XENVER_compile_info => {
                let mut info = [0u8; XEN_COMPILE_INFO_LEN];
                info[..64].copy_from_slice(&padded::<64>(COMPILER));
                self.write_bytes(arg, &info)?;
            }
            XENVER_capabilities => self.write_bytes(arg, &padded::<XEN_CAPABILITIES_INFO_LEN>(CAPABILITIES))?,
            XENVER_changeset => self.write_bytes(arg, &padded::<XEN_CHANGESET_INFO_LEN>(CHANGESET))?,
            XENVER_platform_parameters => self.write(arg, &VIRT_START)?,
            XENVER_get_features => {
                let mut info: xen_feature_info = self.read(arg)?;
                if info.submap_idx != 0 {
                    return Err(errno::EINVAL);
                }
                info.submap = self.features();
                self.write(arg, &info)?;
            }
            XENVER_pagesize if arg != 0 => return Err(errno::EINVAL),
            XENVER_pagesize => return Ok(4096),
            XENVER_guest_handle => self.write(arg, &self.domain.handle)?,
            // Not for everybody's eyes, and said so.
            XENVER_commandline if !self.domain.is_privileged => self.write_bytes(arg, b"<denied>\0")?,
            XENVER_commandline => self.write_bytes(arg, &[0u8; XEN_COMMANDLINE_LEN])?,
            XENVER_build_id if !self.domain.is_privileged => return Err(errno::EPERM),
            XENVER_build_id => return Err(errno::ENODATA),
            _ => return Err(errno::ENOSYS),
        }
        Ok(0)
    }

    fn features(&self) -> u32 {
        let mut bits = (1 << XENFEAT_mmu_pt_update_preserve_ad)
            | (1 << XENFEAT_highmem_assist)
            | (1 << XENFEAT_gnttab_map_avail_bits)
            | (1 << XENFEAT_memory_op_vnode_supported)
            | (1 << XENFEAT_direct_mapped);
        if self.domain.has_assist(VMASST_TYPE_pae_extended_cr3) {
            bits |= 1 << XENFEAT_pae_pgdir_above_4gb;
        }
        if self.domain.is_privileged {
            bits |= 1 << XENFEAT_dom0;
        }
        bits
    }
}
