//! A map of translated blocks for `perf report`, written when `RING3_PERF_MAP` is set in the environment.
//!
//! Format: Linux tools/perf/Documentation/jit-interface.txt. Symbols are guest addresses at translation, `k_` or `u_` by
//! mode.

use std::fs::File;
use std::io::Write;

use ring3_engine::GuestMode;

/// The map's file, if one is wanted.
#[derive(Debug)]
pub struct PerfMap {
    file: Option<File>,
}

impl PerfMap {
    pub fn open() -> Self {
        let wanted = std::env::var_os("RING3_PERF_MAP").is_some();
        let path = format!("/tmp/perf-{}.map", std::process::id());
        Self { file: wanted.then(|| File::options().append(true).create(true).open(path).ok()).flatten() }
    }

    /// Enters a block of `len` bytes at host address `host`, made from guest address `rip`.
    pub fn add(&mut self, host: u64, len: usize, rip: u64, mode: GuestMode) {
        if let Some(file) = &mut self.file {
            let prefix = if mode == GuestMode::Kernel { 'k' } else { 'u' };
            // A profile that lacks a symbol is no reason to stop.
            let _ = writeln!(file, "{host:x} {len:x} {prefix}_{rip:x}");
        }
    }
}
