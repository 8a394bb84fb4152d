//! The quick path of a disk's back end: requests that need no waiting and no Python.
//!
//! `ring3.dom0.block` serves disks. What a benchmark of it showed is here: the loop that takes a read or write of pages
//! that it holds grants of, moves it between them and the host's page cache, and answers. Everything else it leaves in
//! the ring, for Python: other operations, pages without a grant, what must be refused, what would wait, errors.
//! See docs/design/0009-disks.md.
//!
//! The rings are the guest's to write at any time. A request is copied once, and the copy is checked.

mod bell;
mod events;
mod handover;
mod idle;
mod request;
mod ring;
mod shared_unsafe;
#[cfg(test)]
mod tests;

pub use bell::{Bell, Notice};
pub use events::Events;
pub use request::Layout;
pub use ring::{Disk, End, Ring, Served, Wait};
pub use shared_unsafe::Shared;
