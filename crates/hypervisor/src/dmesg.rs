//! The hypervisor's console ring: its own messages, and what guests write with `console_io`.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;

/// Bytes kept. Xen's default is 16 KiB; ours holds a few boots.
const RING_BYTES: usize = 256 * 1024;
/// Bytes of an unfinished line kept for each domain.
const LINE_BYTES: usize = 512;

#[derive(Debug, Default)]
struct Ring {
    bytes: VecDeque<u8>,
    /// Bytes ever dropped from the front, so that readers can keep a position.
    dropped: u64,
    partial: BTreeMap<u16, Vec<u8>>,
}

/// A bounded ring of text lines. Guests cannot make it grow past its size.
#[derive(Debug, Default)]
pub struct Dmesg {
    ring: Mutex<Ring>,
}

impl Ring {
    fn push(&mut self, line: &[u8]) {
        self.bytes.extend(line);
        let excess = self.bytes.len().saturating_sub(RING_BYTES);
        self.bytes.drain(..excess);
        self.dropped += excess as u64;
    }
}

impl Dmesg {
    /// Adds a message of the hypervisor; each of its lines is marked as such.
    pub fn log(&self, message: &str) {
        let mut ring = self.ring.lock();
        for line in message.lines() {
            ring.push(format!("(XEN) {line}\n").as_bytes());
        }
    }

    /// Adds what a domain wrote: printable characters only, by whole lines, each with the domain's number.
    pub fn guest_write(&self, domid: u16, text: &[u8]) {
        let mut ring = self.ring.lock();
        let mut line = ring.partial.remove(&domid).unwrap_or_default();
        for &byte in text {
            if byte == b'\n' || line.len() >= LINE_BYTES {
                let mut out = format!("(d{domid}) ").into_bytes();
                out.append(&mut line);
                out.push(b'\n');
                ring.push(&out);
            }
            if byte == b'\t' || (b' '..=b'~').contains(&byte) {
                line.push(byte);
            }
        }
        if !line.is_empty() {
            ring.partial.insert(domid, line);
        }
    }

    /// Forgets the unfinished line of a domain that is gone.
    pub fn forget(&self, domid: u16) {
        let _ = self.ring.lock().partial.remove(&domid);
    }

    /// Drops all text (XEN_SYSCTL_readconsole with `clear`).
    pub fn clear(&self) {
        let mut ring = self.ring.lock();
        ring.dropped += ring.bytes.len() as u64;
        ring.bytes.clear();
    }

    /// Adds text as it is.
    pub fn write(&self, text: &[u8]) {
        // More than the ring holds would only push itself out.
        let kept = text.len().saturating_sub(RING_BYTES);
        self.ring.lock().push(text.get(kept..).unwrap_or_default());
    }

    /// Bytes ever written, and all text kept.
    pub fn text(&self) -> (u64, Vec<u8>) {
        let ring = self.ring.lock();
        (ring.dropped + ring.bytes.len() as u64, ring.bytes.iter().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_guest_lines_are_prefixed_and_filtered() {
        let dmesg = Dmesg::default();
        dmesg.guest_write(3, b"he\x1b[llo");
        assert!(dmesg.text().1.is_empty());
        dmesg.guest_write(3, b" world\nx");
        assert_eq!(dmesg.text().1, b"(d3) he[llo world\n");
    }

    #[test]
    fn test_endless_output_stays_bounded() {
        let dmesg = Dmesg::default();
        for _ in 0..100 {
            dmesg.guest_write(1, &[b'a'; 100_000]);
        }
        assert!(dmesg.text().1.len() <= RING_BYTES);
    }
}
