//! Random values that are half valid: each is now and then one that a careful kernel would use.

use ring3_abi::xen::{DOMID_IO, DOMID_SELF, DOMID_XEN};
use ring3_engine::pte;
use ring3_machine::Mfn;

use super::super::support::{ARGS, BASE, NR_PAGES};
use super::Place;

/// Where choices come from.
#[derive(Clone, Debug)]
pub struct Random {
    /// A small generator (xorshift64*), so that failures repeat.
    state: u64,
    /// In its place, what a fuzzer that looks at coverage wants next.
    input: Option<Vec<u8>>,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds are to differ from the first number on.
        let state = (seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xd134_2543_de82_ef95) | 1;
        let mut random = Self { state, input: None };
        for _ in 0..4 {
            random.next();
        }
        random
    }

    /// Choices that `input` spells out, as few bytes for each as it needs; zeros behind its end.
    pub fn of_bytes(input: &[u8]) -> Self {
        Self { state: 1, input: Some(input.iter().rev().copied().collect()) }
    }

    /// Whether the input is used up.
    pub fn is_over(&self) -> bool {
        self.input.as_ref().is_some_and(Vec::is_empty)
    }

    /// The next `N` bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| (self.bits(1) & 0xff) as u8)
    }

    /// A number of `len` bytes.
    fn bits(&mut self, len: usize) -> u64 {
        if let Some(input) = &mut self.input {
            return (0..len).fold(0, |value, _| value << 8 | u64::from(input.pop().unwrap_or(0)));
        }
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let number = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d);
        // The upper bits are the better ones.
        if len == 8 { number } else { number >> (64 - 8 * len) }
    }

    pub fn next(&mut self) -> u64 {
        self.bits(8)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        if self.input.is_none() {
            return (self.next() >> 11) % n;
        }
        let len = if n <= 1 << 8 {
            1
        } else if n <= 1 << 16 {
            2
        } else {
            8
        };
        self.bits(len) % n
    }

    pub fn small(&mut self, n: u32) -> u32 {
        u32::try_from(self.below(u64::from(n))).unwrap()
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }

    /// Any number, most likely one at an edge.
    pub fn number(&mut self) -> u64 {
        let edge =
            self.pick(&[0, 1, 2, 8, 63, 64, 511, 512, 4095, 4096, 1 << 31, u64::from(u32::MAX), 1 << 47, u64::MAX]);
        match self.below(4) {
            0 => self.next(),
            1 => self.below(16),
            2 => edge,
            _ => edge.wrapping_add(self.below(5)).wrapping_sub(2),
        }
    }

    pub fn domid(&mut self, place: &Place<'_>) -> u16 {
        match self.below(8) {
            0..=3 => DOMID_SELF,
            4 => place.guest.domid,
            5 => place.peer.domid,
            6 => self.pick(&[0, DOMID_IO, DOMID_XEN, 0x7ff4, 0x7fff, 9, u16::MAX]),
            _ => u16::try_from(self.next() & 0xffff).unwrap(),
        }
    }

    /// A frame: mostly one of the domain's, now and then a table, the hypervisor's, the peer's or none at all.
    pub fn mfn(&mut self, place: &Place<'_>) -> Mfn {
        let own = &place.guest.mfns;
        match self.below(32) {
            0 => Mfn(self.number() & 0xf_ffff_ffff),
            1 => Mfn(self.below(12)),
            2 => self.pick(&place.peer.mfns),
            3 => place.guest.domain().shared_info,
            4 => self.pick(&[place.guest.table_frame(), place.peer.table_frame()]),
            5..=7 => own[usize::try_from(NR_PAGES - 4 + self.below(4)).unwrap()],
            8 => self.pick(own),
            // Few of them, so that requests meet.
            _ => own[usize::try_from(16 + self.below(12)).unwrap()],
        }
    }

    pub fn entry(&mut self, place: &Place<'_>) -> u64 {
        let flags = match self.below(16) {
            0 => return self.next(),
            1..=3 => return 0,
            4..=9 => pte::PRESENT | pte::USER,
            10..=14 => pte::PRESENT | pte::RW | pte::USER,
            _ => self.next() & 0xfff,
        };
        let extra = if self.one_in(8) { self.next() & (pte::NX | 0x7ff << 52 | 0xff8) } else { 0 };
        self.mfn(place).address() | flags | extra
    }

    /// A linear address: of the domain's pages, rarely of those on which its calls depend.
    pub fn va(&mut self, place: &Place<'_>) -> u64 {
        let offset = if self.one_in(2) { 0 } else { self.number() & 0xfff };
        match self.below(16) {
            0 => self.next(),
            1 => self.number(),
            2 => 0xffff_8000_0000_0000 + (self.number() & 0xf_ffff_ffff),
            3 => BASE + self.below(NR_PAGES + 4) * 4096 + offset,
            4 => place.args + offset,
            _ => BASE + (16 + self.below(12)) * 4096 + offset,
        }
    }

    /// A guest handle: mostly where the arguments are.
    pub fn handle(&mut self, place: &Place<'_>) -> u64 {
        match self.below(12) {
            0 => self.va(place),
            1 => self.pick(&[0, place.args + 4092, ARGS + 4095, u64::MAX, 0x8000_0000_0000, 0xffff_8000_0000_0000]),
            _ => place.args + 2048,
        }
    }

    /// A machine address: of an entry of a table, mostly.
    pub fn maddr(&mut self, place: &Place<'_>) -> u64 {
        let table = self.mfn(place).address();
        let index = if self.one_in(3) { self.below(512) } else { self.below(4) };
        let page = BASE / 4096 + 16 + self.below(12);
        match self.below(4) {
            0 => table + index * 8,
            1 => table + index * 8 + self.below(8),
            _ => place.guest.mfns[usize::try_from(NR_PAGES - 1).unwrap()].address() + page * 8,
        }
    }
}
