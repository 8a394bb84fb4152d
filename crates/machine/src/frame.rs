//! Frame numbers as distinct types, so that a machine frame is never taken for a guest's.
//!
//! Definitions: MFN machine frame, GFN what a guest puts in its page tables (equal to the MFN for PV), PFN the
//! domain's own linear numbering. Source: xen/include/xen/mm.h.

/// log2 of the page size.
pub const PAGE_SHIFT: u32 = 12;
/// Page size in bytes.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Page size in bytes, as a length.
pub const PAGE_SIZE_BYTES: usize = 1 << PAGE_SHIFT;

macro_rules! frame_number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The frame that contains byte address `address`.
            pub const fn containing(address: u64) -> Self {
                Self(address >> PAGE_SHIFT)
            }

            /// Address of the frame's first byte.
            pub const fn address(self) -> u64 {
                self.0 << PAGE_SHIFT
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    };
}

frame_number!(
    /// Machine frame number: index of a page of machine memory.
    Mfn
);
frame_number!(
    /// Guest frame number: what a guest writes into its page tables.
    Gfn
);
frame_number!(
    /// Pseudo-physical frame number: linear within one domain.
    Pfn
);
