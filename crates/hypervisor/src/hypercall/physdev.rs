//! physdev_op: what a domain without devices and interrupts may ask.

use ring3_abi::errno;
use ring3_abi::hypercall::__HYPERVISOR_physdev_op;
use ring3_abi::physdev::*;
use ring3_abi::xen::DOMID_SELF;
use ring3_machine::Mfn;

use super::{Caller, HypercallResult};
use crate::vcpu::bounce::Running;

/// Interrupt numbers of a domain: the 24 of an I/O APIC and Xen's 32 extra ones. No domain owns one of them.
pub(super) const NR_PIRQS: u32 = 56;
/// Those of the I/O APIC, and of them those that are never handed out.
const NR_GSIS: u32 = 24;
const NR_LEGACY_IRQS: u32 = 16;
const MAP_PIRQ_TYPE_GSI: u32 = 1;
const MAX_IO_PORTS: u32 = 65536;
/// Bytes of `physdev_map_pirq`.
const MAP_PIRQ_BYTES: usize = 32;

impl Running<'_> {
    /// physdev_op.
    pub(super) fn physdev_op(&mut self, cmd: u32, arg: u64) -> HypercallResult {
        self.hv.table.count(__HYPERVISOR_physdev_op, cmd);
        let caller = Caller::of_guest(self);
        let check_irq = |irq: u32| if irq < NR_PIRQS { Ok(()) } else { Err(errno::EINVAL) };
        match cmd {
            PHYSDEVOP_set_iopl => {
                let set: physdev_set_iopl = caller.read(arg)?;
                if set.iopl > 3 {
                    return Err(errno::EINVAL);
                }
                self.state.iopl = (set.iopl & 3) as u8;
                Ok(0)
            }
            PHYSDEVOP_set_iobitmap => {
                let set: physdev_set_iobitmap = caller.read(arg)?;
                let nr_bytes = u64::from(set.nr_ports.div_ceil(8));
                if set.nr_ports > MAX_IO_PORTS || caller.check_array(set.bitmap, nr_bytes, 1).is_err() {
                    return Err(errno::EINVAL);
                }
                (self.state.iobmp, self.state.iobmp_limit) = (set.bitmap, set.nr_ports);
                Ok(0)
            }
            PHYSDEVOP_IRQ_UNMASK_NOTIFY => Ok(0),
            PHYSDEVOP_irq_status_query => {
                let mut query: physdev_irq_status_query = caller.read(arg)?;
                check_irq(query.irq)?;
                query.flags = XENIRQSTAT_needs_eoi;
                caller.write(arg, &query)?;
                Ok(0)
            }
            PHYSDEVOP_eoi => {
                caller.read::<u32>(arg)?;
                Err(errno::EINVAL)
            }
            // A device model's, for its domain.
            PHYSDEVOP_map_pirq | PHYSDEVOP_unmap_pirq => {
                let domid = if cmd == PHYSDEVOP_map_pirq {
                    caller.read::<[u16; MAP_PIRQ_BYTES / 2]>(arg)?[0]
                } else {
                    caller.read::<[u16; 4]>(arg)?[0]
                };
                let is_there = domid == DOMID_SELF || self.hv.domain(domid).is_some();
                Err(if is_there { errno::EPERM } else { errno::ESRCH })
            }
            PHYSDEVOP_pirq_eoi_gmfn_v1 | PHYSDEVOP_pirq_eoi_gmfn_v2 => {
                let gmfn: u64 = caller.read(arg)?;
                self.set_eoi_map(Mfn(gmfn))
            }
            // For who owns the machine's devices.
            PHYSDEVOP_apic_read | PHYSDEVOP_apic_write | PHYSDEVOP_alloc_irq_vector => {
                caller.read::<[u32; 4]>(arg)?;
                Err(errno::EPERM)
            }
            PHYSDEVOP_pci_mmcfg_reserved | PHYSDEVOP_dbgp_op => Err(errno::EPERM),
            PHYSDEVOP_manage_pci_add..=PHYSDEVOP_manage_pci_remove => {
                caller.read::<[u8; 2]>(arg)?;
                Err(errno::EPERM)
            }
            PHYSDEVOP_manage_pci_add_ext => {
                caller.read::<[u32; 4]>(arg)?;
                Err(errno::EPERM)
            }
            // No such device, whoever asks.
            PHYSDEVOP_restore_msi => {
                caller.read::<[u8; 2]>(arg)?;
                Err(errno::ENODEV)
            }
            PHYSDEVOP_restore_msi_ext => {
                caller.read::<u32>(arg)?;
                Err(errno::ENODEV)
            }
            PHYSDEVOP_get_free_pirq => {
                let [kind, _]: [u32; 2] = caller.read(arg)?;
                let pirq = self.take_free_pirq(kind).ok_or(errno::ENOSPC)?;
                caller.write(arg, &[kind, pirq])?;
                Ok(0)
            }
            PHYSDEVOP_setup_gsi | PHYSDEVOP_pci_device_add => {
                caller.read::<[u32; 2]>(arg)?;
                Err(errno::EPERM)
            }
            PHYSDEVOP_pci_device_add..=PHYSDEVOP_restore_msi_ext | PHYSDEVOP_dbgp_op..=PHYSDEVOP_release_msix => {
                caller.read::<u32>(arg)?;
                Err(errno::EPERM)
            }
            _ => Err(errno::ENOSYS),
        }
    }

    /// An interrupt number that is not in use, for good: nothing can be bound to it.
    fn take_free_pirq(&self, kind: u32) -> Option<u32> {
        let mut life = self.domain.life.lock();
        let is_free = |pirq: &u32| life.taken_pirqs & 1 << pirq == 0;
        let found = if kind == MAP_PIRQ_TYPE_GSI {
            (NR_LEGACY_IRQS..NR_GSIS).find(is_free)
        } else {
            (NR_GSIS..NR_PIRQS).rev().find(is_free)
        };
        life.taken_pirqs |= found.map_or(0, |pirq| 1 << pirq);
        found
    }

    /// A page of the guest's whose bits say which interrupts must be acknowledged: none of them, ever.
    fn set_eoi_map(&mut self, mfn: Mfn) -> HypercallResult {
        self.domain.mm.get_writable(mfn).map_err(|_| errno::EINVAL)?;
        let mut life = self.domain.life.lock();
        if life.eoi_map.is_some() {
            drop(life);
            self.domain.mm.put_writable(mfn);
            return Err(errno::EBUSY);
        }
        life.eoi_map = Some(mfn);
        Ok(0)
    }

    /// physdev_op_compat: command and union in one structure.
    pub(super) fn physdev_op_compat(&mut self, arg: u64) -> HypercallResult {
        let cmd: u32 = Caller::of_guest(self).read(arg)?;
        self.physdev_op(cmd, arg.wrapping_add(PHYSDEV_OP_ARG_OFFSET))
    }
}
