//! The Xen 4.17 guest ABI as constants and `repr(C)` structures: one module per public header, no behaviour.
//!
//! Constants keep Xen's spelling, so that a search finds both sides. Source of every value: the header of the same
//! name under xen/include/public/.
#![no_std]
#![allow(non_upper_case_globals)]

pub mod arch_x86;
pub mod callback;
pub mod cpuid;
pub mod errno;
pub mod event_channel;
pub mod features;
pub mod grant_table;
pub mod hypercall;
pub mod memory;
pub mod nmi;
pub mod physdev;
pub mod sched;
pub mod vcpu;
pub mod version;
pub mod xen;

/// Derives the traits of plain wire structures, and asserts the size.
macro_rules! wire {
    ($(#[$m:meta])* $name:ident, $size:expr, { $($(#[$fm:meta])* $field:ident : $ty:ty = $off:expr),* $(,)? }) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
        #[repr(C)]
        pub struct $name { $($(#[$fm])* pub $field: $ty),* }
        const _: () = assert!(core::mem::size_of::<$name>() == $size);
        $(const _: () = assert!(core::mem::offset_of!($name, $field) == $off);)*
    };
}
pub(crate) use wire;
