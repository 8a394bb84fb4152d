//! See docs/architecture.md.
pub mod mm;
