//! The engine's side: the same sequences in a guest.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use ring3_engine::Engine as _;
use ring3_engine::{
    AddressSpace, CodeSize, Exit, Flush, GuestMode, Requests, SegmentName, VcpuControl, WriteIntercept, pte,
};
use ring3_engine_bt::{BtEngine, Options};
use ring3_machine::{Machine, Mfn};

use crate::ldt::{self, Ldt};
use crate::prng::Prng;
use crate::state::{CODE, CODE_BYTES, CpuState, DATA, End, MEMORY_BYTES, MEMORY_END, READ_ONLY};
use crate::support::{FIRST, Guest, NR_PAGES, counter};

/// How to run a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By blocks.
    Run,
    /// By blocks, from empty caches.
    Cold,
    /// By blocks for the second time, so that jumps between them are linked.
    Again,
    /// By blocks, while another thread posts requests: it comes back and is run again.
    Interrupted,
    /// Instruction by instruction.
    Step,
    /// As `Step`, with stores to the read-only page intercepted and done after all.
    Intercepted,
}

impl Way {
    pub fn random(rng: &mut Prng) -> Self {
        rng.pick(&[Self::Run, Self::Cold, Self::Again, Self::Again, Self::Again, Self::Interrupted, Self::Step])
    }
}

/// The engine under test.
pub struct Engine {
    guest: Guest,
    /// Counts sequences started and ended, for the watchdog.
    progress: Arc<AtomicU64>,
    /// A sequence took too long.
    expired: Arc<AtomicBool>,
    /// Asks the other thread to post requests.
    storm: Arc<AtomicBool>,
    /// Descriptors that selectors name.
    pub ldt: Ldt,
}

/// Does the intercepted stores.
#[derive(Debug)]
struct Sink {
    machine: Arc<Machine>,
    old_is_right: bool,
}

impl WriteIntercept for Sink {
    fn store(&mut self, mfn: Mfn, offset: usize, old: &[u8], new: &[u8]) -> bool {
        let mut now = [0u8; 4096];
        self.machine.read(mfn, offset, &mut now[..old.len()]).unwrap();
        self.old_is_right &= now[..old.len()] == *old && old.len() == new.len();
        self.machine.write(mfn, offset, new).unwrap();
        true
    }
}

/// The thread that interrupts.
fn spawn_storm(storm: Weak<AtomicBool>, control: Arc<dyn VcpuControl>) {
    std::thread::spawn(move || {
        while let Some(storm) = storm.upgrade() {
            if storm.load(Ordering::SeqCst) {
                control.request(Requests::EVENT);
            }
            drop(storm);
            std::thread::sleep(std::time::Duration::from_micros(20));
        }
    });
}

const MFN_OF_DATA: u64 = FIRST + (DATA - CODE) / 4096;
const MFN_READ_ONLY: Mfn = Mfn(FIRST + (READ_ONLY - CODE) / 4096);
const XMM_AT: usize = 160;
const YMM_AT: usize = 576;

impl Engine {
    pub fn new(follows_all: bool) -> Self {
        let options = Options { follows_all, ..Options::from_environment() };
        let mut guest = Guest::with_engine(BtEngine::with_options(options).unwrap());
        let user = pte::PRESENT | pte::USER;
        for page in 0..NR_PAGES.max((MEMORY_END - CODE) / 4096) {
            let rights = match page {
                0 | 1 => user,
                10 | 12 => user | pte::NX,
                7 => user | pte::RW,
                4..=9 | 13 => user | pte::RW | pte::NX,
                _ => 0,
            };
            guest.map(page, if rights == 0 { 0 } else { (FIRST + page) << 12 | rights });
        }
        let space = guest.vcpu.address_space(GuestMode::Kernel);
        guest.vcpu.set_address_space(GuestMode::User, AddressSpace { ..space });
        let progress = Arc::new(AtomicU64::new(0));
        let expired = Arc::new(AtomicBool::new(false));
        let (seen, late, control) = (Arc::downgrade(&progress), Arc::clone(&expired), guest.vcpu.control());
        // A sequence that does not end is interrupted after a second or two.
        std::thread::spawn(move || {
            let mut last = 0;
            while let Some(progress) = seen.upgrade() {
                let now = progress.load(Ordering::Relaxed);
                if now == last && now % 2 == 1 {
                    late.store(true, Ordering::SeqCst);
                    control.request(Requests::EVENT);
                }
                last = now;
                drop(progress);
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        });
        let storm = Arc::new(AtomicBool::new(false));
        spawn_storm(Arc::downgrade(&storm), guest.vcpu.control());
        Self { guest, progress, expired, storm, ldt: Ldt::default() }
    }

    /// Loops that the engine has followed.
    pub fn nr_followed(&self) -> u64 {
        counter(&*self.guest.domain, "loops followed")
    }

    /// New code, and the mode to run it in.
    pub fn set_code(&mut self, code: &[u8; CODE_BYTES], mode: GuestMode) {
        self.guest.write(CODE, &code[..4096]);
        self.guest.write(CODE + 4096, &code[4096..]);
        self.guest.vcpu.set_mode(mode, CodeSize::Bits64);
    }

    pub fn set_memory(&mut self, memory: &[u8; MEMORY_BYTES]) {
        for (n, page) in memory.chunks_exact(4096).enumerate() {
            let mfn = Mfn(MFN_OF_DATA + n as u64);
            self.guest.machine.write(mfn, 0, page).unwrap();
            if self.guest.machine.code().has_code(mfn) {
                self.guest.engine.invalidate_code(mfn);
            }
        }
    }

    pub fn memory(&self, out: &mut [u8]) {
        for (n, page) in out.chunks_exact_mut(4096).enumerate() {
            self.guest.machine.read(Mfn(MFN_OF_DATA + n as u64), 0, page).unwrap();
        }
    }

    /// Runs one sequence; memory and code are in place.
    pub fn run(&mut self, input: &CpuState, way: Way) -> (End, CpuState) {
        self.load(input);
        self.expired.store(false, Ordering::SeqCst);
        self.progress.fetch_add(1, Ordering::Relaxed);
        let exit = match way {
            Way::Run | Way::Again => self.run_on(),
            Way::Cold => {
                self.guest.vcpu.flush(Flush::All);
                self.run_on()
            }
            Way::Interrupted => {
                self.guest.vcpu.control().request(Requests::EVENT.with(Requests::FLUSH_TLB));
                self.storm.store(true, Ordering::SeqCst);
                let exit = self.run_on();
                self.storm.store(false, Ordering::SeqCst);
                exit
            }
            Way::Intercepted => loop {
                let mut sink = Sink { machine: Arc::clone(&self.guest.machine), old_is_right: true };
                match self.guest.vcpu.step(Some((MFN_READ_ONLY, &mut sink))) {
                    _ if !sink.old_is_right => break Exit::Failed("the interceptor was told a wrong old value"),
                    Exit::Stepped if !self.expired.load(Ordering::SeqCst) => {}
                    other => break other,
                }
            },
            Way::Step => loop {
                match self.guest.vcpu.step(None) {
                    Exit::Stepped if !self.expired.load(Ordering::SeqCst) => {}
                    other => break other,
                }
            },
        };
        self.progress.fetch_add(1, Ordering::Relaxed);
        let end = match exit {
            Exit::SoftwareInterrupt { vector: 3 } => End::Trap,
            Exit::SoftwareInterrupt { vector: 4 } => End::Exception { vector: 4, error: 0, cr2: 0 },
            Exit::SoftwareInterrupt { vector } => End::Other(u64::from(vector)),
            Exit::Exception { vector, error_code, cr2 } => {
                End::Exception { vector: u64::from(vector), error: u64::from(error_code.unwrap_or(0)), cr2 }
            }
            Exit::Debug { .. } => End::Exception { vector: 1, error: 0, cr2: 0 },
            Exit::Privileged => End::Privileged,
            Exit::Failed(why) => End::Failed(why),
            Exit::Interrupted(_) | Exit::Stepped | Exit::Spinning => End::Lost,
            Exit::Hypercall | Exit::Syscall => End::Other(0x100),
        };
        (end, self.state())
    }

    /// Runs until something other than a request comes back.
    fn run_on(&mut self) -> Exit {
        loop {
            match self.guest.vcpu.run() {
                Exit::Interrupted(_) | Exit::Spinning if !self.expired.load(Ordering::SeqCst) => {}
                other => return other,
            }
        }
    }

    fn load(&mut self, input: &CpuState) {
        let regs = self.guest.vcpu.regs_mut();
        regs.gpr = input.gpr;
        regs.rip = input.rip;
        regs.rflags = input.rflags;
        regs.fs_base = input.fs_base;
        regs.gs_base = input.gs_base;
        regs.cs = input.cs as u16;
        [regs.ss, regs.ds, regs.es, regs.fs, regs.gs] = input.selectors;
        let selectors = [regs.es, regs.cs, regs.ss, regs.ds, regs.fs, regs.gs];
        regs.segments = selectors.map(|selector| ldt::segment(&self.ldt, selector));
        let size = regs.segment(SegmentName::Cs).code_size();
        let mode = self.guest.vcpu.mode();
        self.guest.vcpu.set_mode(mode, size);
        let mut image = [0u8; 832];
        image[..160].copy_from_slice(&input.x87);
        image[24..28].copy_from_slice(&(input.mxcsr as u32).to_le_bytes());
        for (n, register) in input.ymm.iter().enumerate() {
            image[XMM_AT + 16 * n..][..16].copy_from_slice(&register[..16]);
            image[YMM_AT + 16 * n..][..16].copy_from_slice(&register[16..]);
        }
        image[512] = 7;
        self.guest.vcpu.set_xsave(&image);
    }

    fn state(&mut self) -> CpuState {
        let regs = self.guest.vcpu.regs().clone();
        let image = self.guest.vcpu.xsave();
        let mut state = CpuState {
            gpr: regs.gpr,
            rip: regs.rip,
            rflags: regs.rflags,
            fs_base: regs.fs_base,
            gs_base: regs.gs_base,
            cs: u64::from(regs.cs),
            selectors: [regs.ss, regs.ds, regs.es, regs.fs, regs.gs],
            ..CpuState::default()
        };
        state.mxcsr = u64::from(u32::from_le_bytes(image[24..28].try_into().unwrap()));
        state.x87.copy_from_slice(&image[..160]);
        for (n, register) in state.ymm.iter_mut().enumerate() {
            register[..16].copy_from_slice(&image[XMM_AT + 16 * n..][..16]);
            register[16..].copy_from_slice(&image[YMM_AT + 16 * n..][..16]);
        }
        state
    }
}
