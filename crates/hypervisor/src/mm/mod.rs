//! Memory management of paravirtualized domains: who owns each machine frame, as what it is used, and every change
//! of a page-table entry.
//!
//! - [`FrameTable`], one per machine: owner, general reference count, type and type count of each frame; the free
//!   frames; the machine-to-phys table.
//! - [`DomainMm`], one per domain: reservations, pinning, page-table updates, roots, descriptor tables, teardown.
//!
//! # Rules (real Xen's)
//! A frame has one type at a time, with a count. A frame typed L1 to L4 or segdesc has passed validation and has no
//! writable mapping; a frame mapped writable cannot become one of these until the last such mapping is gone *and* no
//! TLB can still hold one ([`FlushSink`]). Every type reference comes with a general reference; a frame whose
//! general count reaches zero is freed, and is handed out again only after a flush and a scrub.
//!
//! # Locks and threads
//! All functions may be called from any thread. Counts and entries change by compare-and-swap; the only lock is the
//! heap's (free frames and per-domain lists), innermost, never held over a call of [`FlushSink`]. A thread may spin
//! while another validates the same frame; waits go down the levels only, so they end. Callers hold no lock that
//! their own `FlushSink` takes.

mod audit;
mod board;
mod domain;
mod entry;
mod error;
mod extent;
mod flush;
mod frame;
mod grant;
mod heap;
mod l1;
mod linear;
mod long;
mod pin;
mod ptwr;
mod segdesc;
mod spare;
mod table;
mod types;
mod update;
mod upper;
mod validate;
mod walk;

pub use audit::Held;
pub use domain::DomainMm;
pub use error::Error;
pub use extent::MAX_ORDER;
pub use flush::FlushSink;
pub use frame::PageType;
pub use long::LongWork;
pub use segdesc::ACCESSED;
pub use table::{FrameInfo, FrameTable};
pub use upper::StaleSlots;
pub use walk::Slot;

/// Domain identifier, as in the ABI. Source: xen/include/public/xen.h, domid_t.
pub type Domid = u16;

/// Result of memory operations.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests;
