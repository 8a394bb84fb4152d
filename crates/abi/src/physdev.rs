//! Source: xen/include/public/physdev.h.

use crate::wire;

/// Source: physdev.h, PHYSDEVOP_IRQ_UNMASK_NOTIFY: obsolete.
pub const PHYSDEVOP_IRQ_UNMASK_NOTIFY: u32 = 4;
pub const PHYSDEVOP_irq_status_query: u32 = 5;
pub const PHYSDEVOP_set_iopl: u32 = 6;
pub const PHYSDEVOP_set_iobitmap: u32 = 7;
pub const PHYSDEVOP_apic_read: u32 = 8;
pub const PHYSDEVOP_apic_write: u32 = 9;
pub const PHYSDEVOP_alloc_irq_vector: u32 = 10;
pub const PHYSDEVOP_eoi: u32 = 12;
pub const PHYSDEVOP_map_pirq: u32 = 13;
pub const PHYSDEVOP_unmap_pirq: u32 = 14;
pub const PHYSDEVOP_manage_pci_add: u32 = 15;
pub const PHYSDEVOP_manage_pci_remove: u32 = 16;
pub const PHYSDEVOP_pirq_eoi_gmfn_v1: u32 = 17;
pub const PHYSDEVOP_restore_msi: u32 = 19;
pub const PHYSDEVOP_manage_pci_add_ext: u32 = 20;
pub const PHYSDEVOP_setup_gsi: u32 = 21;
pub const PHYSDEVOP_get_free_pirq: u32 = 23;
pub const PHYSDEVOP_pci_mmcfg_reserved: u32 = 24;
pub const PHYSDEVOP_pci_device_add: u32 = 25;
pub const PHYSDEVOP_restore_msi_ext: u32 = 27;
pub const PHYSDEVOP_pirq_eoi_gmfn_v2: u32 = 28;
pub const PHYSDEVOP_dbgp_op: u32 = 29;
pub const PHYSDEVOP_release_msix: u32 = 31;

pub const XENIRQSTAT_needs_eoi: u32 = 1;

wire!(physdev_irq_status_query, 8, { irq: u32 = 0, flags: u32 = 4 });
wire!(physdev_set_iopl, 4, { iopl: u32 = 0 });
wire!(physdev_set_iobitmap, 16, { bitmap: u64 = 0, nr_ports: u32 = 8, _pad: u32 = 12 });
/// Layout of `struct physdev_op`, the compat form: command, then the union at 8.
pub const PHYSDEV_OP_ARG_OFFSET: u64 = 8;
