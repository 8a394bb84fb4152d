//! The traits that an engine implements.

use std::fmt::Debug;
use std::sync::Arc;

use ring3_machine::{Machine, Mfn};

use crate::{AddressSpace, Breakpoint, CodeSize, Exit, Features, NR_BREAKPOINTS, Regs};

/// Errors of engines towards the hypervisor; never caused by guest input.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This host cannot run the engine.
    #[error("engine {engine} is unavailable: {reason}")]
    Unavailable { engine: &'static str, reason: String },
    /// The host refused a resource.
    #[error("engine cannot get {what}: {source}")]
    Host { what: &'static str, source: std::io::Error },
}

/// Which guest privilege level runs. A PV kernel and its users both run at ring 3; this flag tells them apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GuestMode {
    #[default]
    Kernel,
    User,
}

/// What a TLB flush drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Everything, kernel and user.
    All,
    /// Everything cached for user mode only.
    User,
    /// Everything cached for user mode, and in kernel mode all but the upper half's mappings that the guest keeps to
    /// its kernel ([`crate::Translation::is_kernel`]).
    LowerHalf,
    /// The page that contains this linear address, in both modes.
    Page(u64),
    /// Every page whose entry has this index in its level-1 table, in both modes; without `code`, what is cached of data
    /// accesses only.
    Slot { index: u16, code: bool },
}

/// A set of requests to a vCPU (bits).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests(pub u32);

impl Requests {
    /// Drop the whole TLB. Served by the engine.
    pub const FLUSH_TLB: Self = Self(1 << 0);
    /// Drop cached references to translated code. Engines only.
    pub const FLUSH_CODE: Self = Self(1 << 1);
    /// An event may be deliverable: re-test `evtchn_upcall_pending`.
    pub const EVENT: Self = Self(1 << 8);
    /// The time slice is over, or the vCPU must stop running (pause, destroy, migration).
    pub const RESCHEDULE: Self = Self(1 << 9);
    /// Drop write access cached for frames that hold code. Engines only.
    pub const PROTECT_CODE: Self = Self(1 << 2);
    /// Drop translations of data accesses; translated code may stay. For changes that no guest can see.
    pub const FLUSH_DATA: Self = Self(1 << 3);
    /// Nothing but the safe point: the vCPU has left every page walk that it was in.
    pub const SYNC: Self = Self(1 << 4);
    /// Give up write access cached for the frames named to [`VcpuControl::request_protect`].
    pub const PROTECT_FRAMES: Self = Self(1 << 5);
    /// Stay out of the guest until the vCPU that asked is done. Engines only.
    pub const EXCLUSIVE: Self = Self(1 << 6);
    /// Give up what is cached of translated code that is about to go, for room. Engines only.
    pub const EVICT_CODE: Self = Self(1 << 7);
    /// Those that the engine serves itself.
    pub const ENGINE: Self = Self(0xff);

    /// Whether any bit of `other` is in `self`.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Both sets.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether no bit is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The part of a vCPU that other threads may touch.
pub trait VcpuControl: Send + Sync + Debug {
    /// Posts requests. Sequentially consistent with [`VcpuControl::is_in_guest`]: if that is seen false afterwards,
    /// the vCPU will serve the request before it executes another guest instruction.
    fn request(&self, requests: Requests);

    /// Requests posted and not yet taken.
    fn requested(&self) -> Requests;

    /// Whether the vCPU may be executing guest instructions.
    fn is_in_guest(&self) -> bool;

    /// Called every few milliseconds while the vCPU has a pCPU: an engine may have it look where it spends its time.
    fn sample(&self) {}

    /// Posts a request to give up write access cached for one frame; [`Requests::PROTECT_FRAMES`] is its bit. An engine
    /// may do more.
    fn request_protect(&self, mfn: Mfn) {
        let _ = mfn;
        self.request(Requests::FLUSH_DATA);
    }

    /// Posts requests and returns once the vCPU has served them or is out of the guest. The caller holds no lock
    /// that a vCPU needs in order to reach a safe point, and is not that vCPU's thread.
    fn request_and_wait(&self, requests: Requests) {
        self.request(requests);
        let mut spins = 0u32;
        while self.is_in_guest() && self.requested().intersects(requests) {
            spins += 1;
            if spins.is_multiple_of(64) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }
}

/// Receives the store of an instruction that [`Vcpu::step`] executes (writable-page-table emulation).
pub trait WriteIntercept {
    /// Called once the instruction's result is known, instead of the store: `new` goes to `offset` in frame `mfn`,
    /// where the instruction read `old` (equal lengths, 1 to 64 bytes, within the frame). Returns whether the
    /// store may be deemed done; `false` makes the step return `Exit::Exception` #GP(0) with no state changed. So does a
    /// store of which but a part lies in the frame. The vCPU is out of the guest meanwhile: it may be waited for.
    fn store(&mut self, mfn: Mfn, offset: usize, old: &[u8], new: &[u8]) -> bool;
}

/// Instructions of ring 3 that are to exit to the hypervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Guards {
    /// `rdtsc` and `rdtscp`, as with CR4.TSD.
    pub tsc: bool,
    /// `rdfsbase` and its kin, as without CR4.FSGSBASE.
    pub bases: bool,
}

/// What the hypervisor tells a new vCPU.
#[derive(Clone, Debug)]
pub struct Config {
    /// Features and state components that the guest may use, decided by the CPUID policy: XCR0 as `xgetbv` shows it.
    pub xcr0: u64,
}

/// One virtual CPU.
pub trait Vcpu: Send + Debug {
    /// Registers between runs.
    fn regs(&self) -> &Regs;

    /// Registers between runs, to be changed.
    fn regs_mut(&mut self) -> &mut Regs;

    /// Extended state as a standard-format XSAVE image: x87, SSE, AVX (832 bytes; layout: Intel SDM vol. 1,
    /// "XSAVE Area"). Valid between runs.
    fn xsave(&mut self) -> &[u8];

    /// Replaces the extended state. MXCSR reserved bits are masked off; short input leaves the rest as is.
    fn set_xsave(&mut self, image: &[u8]);

    /// Takes what the last run left in this thread's CPU (x87 state) out of it. To be called after a run before another
    /// thread may run the vCPU, and before this one runs another vCPU or code that may use the x87.
    fn park(&mut self) {}

    /// Chooses the page tables of each mode. Does not flush: the caller says what to drop with [`Vcpu::flush`].
    fn set_address_space(&mut self, mode: GuestMode, space: AddressSpace);

    /// The page tables of a mode.
    fn address_space(&self, mode: GuestMode) -> AddressSpace;

    /// Switches between kernel and user mode, and the size of code that CS selects. Cheap; flushes nothing.
    fn set_mode(&mut self, mode: GuestMode, code: CodeSize);

    /// The current mode.
    fn mode(&self) -> GuestMode;

    /// The size of code that runs.
    fn code_size(&self) -> CodeSize;

    /// Arms hardware breakpoints, by number; they hold in both modes. Those on execution are passed over once where
    /// RFLAGS.RF is set at the start of [`Vcpu::run`].
    fn set_breakpoints(&mut self, breakpoints: &[Option<Breakpoint>; NR_BREAKPOINTS]);

    /// CR0.TS, with CR0.MP set: whether x87, MMX, SSE and AVX instructions raise #NM.
    fn set_task_switched(&mut self, is_set: bool);

    /// Makes instructions that the CPU runs at ring 3 unless CR4 forbids it exit as [`Exit::Privileged`].
    fn set_guards(&mut self, guards: Guards);

    /// XCR0, a subset of that of the configuration: what `xgetbv` shows and XSAVE handles. Without its AVX, instructions
    /// that need that state raise #UD.
    fn set_xcr0(&mut self, xcr0: u64);

    /// Drops cached translations of this vCPU. Only from the thread that runs it.
    fn flush(&mut self, flush: Flush);

    /// Handle for other threads.
    fn control(&self) -> Arc<dyn VcpuControl>;

    /// Runs the guest until something needs the hypervisor.
    fn run(&mut self) -> Exit;

    /// Executes exactly one instruction at RIP. If `intercept` names a frame, a store into that frame is allowed
    /// although its mapping is read-only, and goes to the trait object.
    fn step(&mut self, intercept: Option<(Mfn, &mut dyn WriteIntercept)>) -> Exit;
}

/// What one domain's vCPUs share in an engine (translated code).
pub trait DomainEngine: Send + Sync + Debug {
    /// Makes vCPU `id` with all registers zero, kernel mode.
    ///
    /// # Errors
    /// [`Error::Host`].
    fn create_vcpu(&self, id: u32, config: &Config) -> Result<Box<dyn Vcpu>, Error>;

    /// Makes instructions raise #UD that the host has and the domain's policy does not show. None of its vCPUs runs.
    fn hide(&self, features: Features);

    /// Forgets all that was made of the domain's code: while it was paused, its memory may have been written by somebody
    /// who tells nobody. None of its vCPUs runs.
    fn forget_code(&self) {}

    /// The domain has hardly run of late: memory that made it fast may be given back. Called by a thread that is no vCPU's.
    /// Returns whether that was done, or should be tried again soon.
    fn note_idle(&self) -> bool {
        true
    }

    /// What the engine counts of this domain, for those who look into its performance: names and figures.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// An engine, registered by name.
pub trait Engine: Send + Sync + Debug {
    /// The name users give with `--engine`.
    fn name(&self) -> &'static str;

    /// Makes the shared part for a new domain.
    ///
    /// # Errors
    /// [`Error::Host`].
    fn create_domain(&self, machine: &Arc<Machine>) -> Result<Arc<dyn DomainEngine>, Error>;

    /// Tells that frame `mfn` was or is about to be written behind the engine's back while
    /// `machine.code().has_code(mfn)`: drops all translated code made from it, in every domain, and clears the mark.
    /// May wait for vCPUs to reach a safe point: the caller holds no lock that they need to get there.
    fn invalidate_code(&self, mfn: Mfn);

    /// Waits for what the engine does by itself. Called at the end, when no domain runs.
    fn finish(&self) {}

    /// What [`DomainEngine::counters`] says, of all domains that are or were.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}
