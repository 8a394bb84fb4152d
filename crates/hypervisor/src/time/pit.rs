//! Channel 2 of the i8254 timer with its gate in port 0x61: what Xen emulates of the PC's ports for a PV domain that
//! was created with `XEN_X86_EMU_PIT`. Kernels calibrate their clocks by it; the other channels raise interrupts, which
//! no PV guest gets from them.
//!
//! Source: Intel 8254 data sheet, "Programming the 8254"; Xen 4.17's choices where it leaves one.

/// Ticks a second.
const FREQUENCY_HZ: u128 = 1_193_181;

/// Which byte of the counter the next access is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Access {
    #[default]
    None,
    Low,
    High,
    /// Both, the low one first.
    Word,
    /// The high one of both.
    WordHigh,
}

impl Access {
    const fn of(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::None,
            1 => Self::Low,
            2 => Self::High,
            _ => Self::Word,
        }
    }
}

/// Channel 2.
#[derive(Debug)]
pub struct Pit {
    /// What it counts down from; 65536 for 0.
    count: u32,
    loaded_ns: u64,
    /// 0 to 5; none before the first control word: then it counts as in mode 2.
    mode: u8,
    /// Access bits, mode and BCD of the last control word.
    control: u8,
    read: Access,
    write: Access,
    /// Low byte of a word that is being written.
    half: u8,
    /// A count that was latched, and what of it is still to be read.
    latch: Option<(u16, Access)>,
    status: Option<u8>,
    gate: bool,
    speaker: bool,
}

impl Default for Pit {
    fn default() -> Self {
        Self {
            count: 0x1_0000,
            loaded_ns: 0,
            mode: 0xff,
            control: 0,
            read: Access::None,
            write: Access::None,
            half: 0,
            latch: None,
            status: None,
            gate: false,
            speaker: false,
        }
    }
}

const fn low(value: u16) -> u8 {
    value.to_le_bytes()[0]
}

const fn high(value: u16) -> u8 {
    value.to_le_bytes()[1]
}

impl Pit {
    /// Ports that it answers.
    pub fn has_port(port: u16) -> bool {
        matches!(port, 0x42 | 0x43 | 0x61)
    }

    /// Ticks since the counter was loaded.
    #[allow(clippy::cast_possible_truncation, reason = "584 years of ticks fit")]
    fn elapsed(&self, now_ns: u64) -> u64 {
        (u128::from(now_ns.saturating_sub(self.loaded_ns)) * FREQUENCY_HZ / 1_000_000_000) as u64
    }

    #[allow(clippy::cast_possible_truncation, reason = "the counter has 16 bits")]
    fn counter(&self, now_ns: u64) -> u16 {
        let (elapsed, count) = (self.elapsed(now_ns), u64::from(self.count));
        match self.mode {
            0 | 1 | 4 | 5 => count.wrapping_sub(elapsed) as u16,
            // A square wave counts by twos.
            3 => (count - (2 * elapsed) % count) as u16,
            _ => (count - elapsed % count) as u16,
        }
    }

    fn output(&self, now_ns: u64) -> bool {
        let (elapsed, count) = (self.elapsed(now_ns), u64::from(self.count));
        match self.mode {
            1 => elapsed < count,
            2 => elapsed != 0 && elapsed.is_multiple_of(count),
            3 => elapsed % count < count.div_ceil(2),
            4 | 5 => elapsed == count,
            _ => elapsed >= count,
        }
    }

    fn load(&mut self, value: u16, now_ns: u64) {
        self.count = if value == 0 { 0x1_0000 } else { u32::from(value) };
        self.loaded_ns = now_ns;
    }

    fn latch_count(&mut self, now_ns: u64) {
        if self.latch.is_none() {
            let access = Access::of(self.control >> 4);
            self.latch = (access != Access::None).then(|| (self.counter(now_ns), access));
        }
    }

    fn write_control(&mut self, value: u8, now_ns: u64) {
        const CHANNEL_2: u8 = 1 << 3;
        match value >> 6 {
            // Read back: the bits that are clear say what to latch.
            3 if value & CHANNEL_2 != 0 => {
                if value & (1 << 5) == 0 {
                    self.latch_count(now_ns);
                }
                if value & (1 << 4) == 0 && self.status.is_none() {
                    self.status = Some((u8::from(self.output(now_ns)) << 7) | self.control);
                }
            }
            2 => {
                let access = Access::of(value >> 4);
                if access == Access::None {
                    self.latch_count(now_ns);
                    return;
                }
                let mode = (value >> 1) & 7;
                self.mode = if mode > 5 { mode - 4 } else { mode };
                self.control = (value & 0x31) | (self.mode << 1);
                (self.read, self.write) = (access, access);
            }
            _ => {}
        }
    }

    fn write_count(&mut self, value: u8, now_ns: u64) {
        match self.write {
            Access::None => {}
            Access::Low => self.load(u16::from(value), now_ns),
            Access::High => self.load(u16::from(value) << 8, now_ns),
            Access::Word => (self.half, self.write) = (value, Access::WordHigh),
            Access::WordHigh => {
                self.load(u16::from_le_bytes([self.half, value]), now_ns);
                self.write = Access::Word;
            }
        }
    }

    fn read_count(&mut self, now_ns: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        if let Some((value, access)) = self.latch.take() {
            if access == Access::Word {
                self.latch = Some((value, Access::High));
                return low(value);
            }
            return if access == Access::Low { low(value) } else { high(value) };
        }
        let value = self.counter(now_ns);
        match self.read {
            Access::High => high(value),
            Access::Word => {
                self.read = Access::WordHigh;
                low(value)
            }
            Access::WordHigh => {
                self.read = Access::Word;
                high(value)
            }
            Access::None | Access::Low => low(value),
        }
    }

    /// A byte is written to one of its ports.
    pub fn write(&mut self, port: u16, value: u8, now_ns: u64) {
        match port {
            0x42 => self.write_count(value, now_ns),
            0x43 => self.write_control(value, now_ns),
            0x61 => {
                let gate = value & 1 != 0;
                // These modes start anew when the gate opens; the others are not stopped by it here.
                if gate && !self.gate && matches!(self.mode, 1 | 2 | 3 | 5) {
                    self.loaded_ns = now_ns;
                }
                (self.gate, self.speaker) = (gate, value & 2 != 0);
            }
            _ => {}
        }
    }

    /// A byte is read from one of its ports.
    pub fn read(&mut self, port: u16, now_ns: u64) -> u8 {
        match port {
            0x42 => self.read_count(now_ns),
            0x61 => {
                // The refresh clock toggles at about 15 µs.
                let refresh = (now_ns >> 14) & 1 != 0;
                u8::from(self.gate)
                    | (u8::from(self.speaker) << 1)
                    | (u8::from(refresh) << 4)
                    | (u8::from(self.output(now_ns)) << 5)
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nanoseconds of so many ticks, and half of one.
    fn at(ticks: u64) -> u64 {
        (ticks * 1_000_000_000 + 500_000_000) / 1_193_181
    }

    #[test]
    fn test_one_shot_counts_down_and_ends_as_a_kernel_calibrates() {
        let mut pit = Pit::default();
        pit.write(0x61, 1, 0);
        pit.write(0x43, 0xb0, 0);
        pit.write(0x42, 0xff, 0);
        pit.write(0x42, 0xff, 0);
        let word = |pit: &mut Pit, now| u16::from_le_bytes([pit.read(0x42, now), pit.read(0x42, now)]);
        assert_eq!(word(&mut pit, at(0)), 0xffff);
        assert_eq!(word(&mut pit, at(0x1234)), 0xffff - 0x1234);
        assert_eq!(pit.read(0x61, at(0xfffe)) & 0x23, 1);
        assert_eq!(pit.read(0x61, at(0xffff)) & 0x23, 0x21);
    }

    #[test]
    fn test_latched_values_stay_until_they_are_read() {
        let mut pit = Pit::default();
        pit.write(0x43, 0xb4, 0);
        pit.write(0x42, 0x00, 0);
        pit.write(0x42, 0x10, 0);
        pit.write(0x43, 0x80, at(16));
        pit.write(0x43, 0x80, at(99));
        assert_eq!((pit.read(0x42, at(1000)), pit.read(0x42, at(1000))), (0xf0, 0x0f));
        // Read back of count and status: the status comes first.
        pit.write(0x43, 0xc8, at(32));
        assert_eq!(pit.read(0x42, at(40)), 0x34);
        assert_eq!((pit.read(0x42, at(40)), pit.read(0x42, at(40))), (0xe0, 0x0f));
        // It starts over at its end, as mode 2 does.
        assert_eq!((pit.read(0x42, at(0x1001)), pit.read(0x42, at(0x1001))), (0xff, 0x0f));
    }

    #[test]
    fn test_square_wave_and_gate() {
        let mut pit = Pit::default();
        pit.write(0x43, 0x96, 0);
        pit.write(0x42, 100, 0);
        assert_eq!(pit.read(0x42, at(10)), 80);
        assert_eq!(pit.read(0x61, at(10)) & 0x20, 0x20);
        assert_eq!(pit.read(0x61, at(60)) & 0x20, 0);
        pit.write(0x61, 3, at(60));
        assert_eq!(pit.read(0x61, at(60)) & 0x23, 0x23);
    }
}
