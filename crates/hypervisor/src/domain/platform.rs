//! The ports of a PC as a domain without devices sees them: a few are emulated, the others read as ones and swallow
//! what is written. Whether it may try at all is `vcpu/privileged/port.rs`'s business.
//!
//! As Xen 4.17: the index register of the CMOS and the address register of PCI are latches of the domain's own, with
//! nothing behind them; the timer is there for domains created with `XEN_X86_EMU_PIT`.

use crate::time::Pit;

const CMOS_INDEX: u32 = 0x70;
const PCI_ADDRESS: u32 = 0xcf8;
const PCI_DATA: u32 = 0xcfc;

/// What one domain has of a PC.
#[derive(Debug, Default)]
pub struct Platform {
    pit: Option<Pit>,
    cmos_index: u8,
    pci_address: u32,
}

/// Bytes of an access to the PCI data window that reach it at once.
const fn pci_size(port: u32, len: u32) -> u32 {
    let room = 4 - (port & 3);
    match if len < room { len } else { room } {
        3 => 2,
        size => size,
    }
}

impl Platform {
    /// Of a new domain.
    pub fn new(has_pit: bool) -> Self {
        Self { pit: has_pit.then(Pit::default), ..Self::default() }
    }

    /// Reads 1, 2 or 4 bytes.
    pub fn read(&mut self, port: u16, len: u32, now_ns: u64) -> u32 {
        let (mut port, mut left, mut data, mut shift) = (u32::from(port), len, 0u32, 0u32);
        while left > 0 {
            let (size, part) = self.read_part(port, left, now_ns);
            if size == 4 {
                return part;
            }
            data |= (part & ((1 << (size * 8)) - 1)) << shift;
            shift += size * 8;
            port += size;
            left -= size;
        }
        data
    }

    fn read_part(&mut self, port: u32, len: u32, now_ns: u64) -> (u32, u32) {
        match (u16::try_from(port), &mut self.pit) {
            (Ok(port), Some(pit)) if Pit::has_port(port) => return (1, u32::from(pit.read(port, now_ns))),
            _ => {}
        }
        match port {
            CMOS_INDEX => (1, u32::from(self.cmos_index)),
            PCI_ADDRESS if len == 4 => (4, self.pci_address),
            _ if port & !3 == PCI_DATA => (pci_size(port, len), u32::MAX),
            _ => (1, u32::MAX),
        }
    }

    /// Writes 1, 2 or 4 bytes.
    pub fn write(&mut self, port: u16, len: u32, value: u32, now_ns: u64) {
        let (mut port, mut left, mut value) = (u32::from(port), len, value);
        while left > 0 {
            let byte = value.to_le_bytes()[0];
            let size = match (port, u16::try_from(port), &mut self.pit) {
                (_, Ok(port), Some(pit)) if Pit::has_port(port) => {
                    pit.write(port, byte, now_ns);
                    1
                }
                (CMOS_INDEX, ..) => {
                    self.cmos_index = byte;
                    1
                }
                (PCI_ADDRESS, ..) if left == 4 => {
                    self.pci_address = value;
                    return;
                }
                _ if port & !3 == PCI_DATA => pci_size(port, left),
                _ => 1,
            };
            if size == 4 {
                return;
            }
            value >>= size * 8;
            port += size;
            left -= size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_latches_are_the_domains_own_and_the_rest_is_not_there() {
        let mut platform = Platform::new(false);
        platform.write(0x70, 1, 0x1234, 0);
        assert_eq!(platform.read(0x70, 1, 0), 0x34);
        // Two bytes at once: the index, and the data that nobody answers.
        assert_eq!(platform.read(0x70, 2, 0), 0xff34);
        platform.write(0xcf8, 4, 0x8000_0800, 0);
        assert_eq!(platform.read(0xcf8, 4, 0), 0x8000_0800);
        assert_eq!(platform.read(0xcf8, 2, 0), 0xffff);
        assert_eq!(platform.read(0xcfd, 4, 0), u32::MAX);
        platform.write(0xcfc, 4, 7, 0);
        assert_eq!(platform.read(0x42, 1, 0), 0xff);
        assert_eq!(platform.read(0xffff, 4, 0), u32::MAX);
        platform.write(0xffff, 4, 7, 0);
    }

    #[test]
    fn test_timer_answers_where_it_is_there() {
        let mut platform = Platform::new(true);
        platform.write(0x43, 1, 0xb0, 0);
        platform.write(0x42, 1, 0xff, 0);
        platform.write(0x42, 1, 0xff, 0);
        assert_eq!(platform.read(0x42, 1, 0), 0xff);
        assert_eq!(platform.read(0x42, 1, 10_000_000), 0xd1);
        assert_eq!(platform.read(0x43, 1, 0), 0);
    }
}
