//! A map of translated blocks for `perf report`, written when `RING3_PERF_MAP` is set in the environment.
//!
//! Format: Linux tools/perf/Documentation/jit-interface.txt. Symbols are guest addresses at translation, `k_` or `u_` by
//! mode.

use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;

use ring3_engine::GuestMode;

/// One for the process, as `perf` wants it. Opened early: a process that is locked down opens nothing.
static FILE: OnceLock<Option<File>> = OnceLock::new();

/// Opens the map's file, if one is wanted and it was not opened before.
pub fn open() -> Option<&'static File> {
    FILE.get_or_init(|| {
        let wanted = std::env::var_os("RING3_PERF_MAP").is_some();
        let path = format!("/tmp/perf-{}.map", std::process::id());
        wanted.then(|| File::options().append(true).create(true).open(path).ok()).flatten()
    })
    .as_ref()
}

/// Enters a block of `len` bytes at host address `host`, made from guest address `rip`.
pub fn add(host: u64, len: usize, rip: u64, mode: GuestMode) {
    if let Some(mut file) = open() {
        let prefix = if mode == GuestMode::Kernel { 'k' } else { 'u' };
        // One write for a line: caches of several domains share the file. A profile that lacks a symbol is no reason to stop.
        let _ = file.write_all(format!("{host:x} {len:x} {prefix}_{rip:x}\n").as_bytes());
    }
}
