//! An engine whose vCPUs do what a test tells them: each `run` takes the next step of a script.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use ring3_engine::{
    AddressSpace, Breakpoint, CodeSize, Config, DomainEngine, Engine, Error, Exit, Features, Flush, Guards, GuestMode,
    NR_BREAKPOINTS, Regs, Requests, Vcpu, VcpuControl, WriteIntercept,
};
use ring3_machine::{Machine, Mfn};

/// What the guest does next: changes registers, and exits.
pub type Step = Box<dyn FnOnce(&mut Regs) -> Exit + Send>;

/// Scripts by vCPU id, shared with the test.
#[derive(Clone, Default)]
pub struct Scripts(Arc<Mutex<BTreeMap<u32, VecDeque<Step>>>>);

impl fmt::Debug for Scripts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripts")
    }
}

impl Scripts {
    pub fn push(&self, vcpu: u32, step: impl FnOnce(&mut Regs) -> Exit + Send + 'static) {
        self.0.lock().entry(vcpu).or_default().push_back(Box::new(step));
    }

    fn pop(&self, vcpu: u32) -> Option<Step> {
        self.0.lock().get_mut(&vcpu)?.pop_front()
    }
}

#[derive(Debug, Default)]
struct Control {
    requests: AtomicU32,
    in_guest: AtomicBool,
}

impl VcpuControl for Control {
    fn request(&self, requests: Requests) {
        self.requests.fetch_or(requests.0, Ordering::SeqCst);
    }

    fn requested(&self) -> Requests {
        Requests(self.requests.load(Ordering::SeqCst))
    }

    fn is_in_guest(&self) -> bool {
        self.in_guest.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
pub struct DoubleVcpu {
    id: u32,
    regs: Regs,
    mode: GuestMode,
    code: CodeSize,
    kernel: AddressSpace,
    user: AddressSpace,
    xsave: Vec<u8>,
    control: Arc<Control>,
    scripts: Scripts,
}

impl Vcpu for DoubleVcpu {
    fn regs(&self) -> &Regs {
        &self.regs
    }

    fn regs_mut(&mut self) -> &mut Regs {
        &mut self.regs
    }

    fn xsave(&mut self) -> &[u8] {
        &self.xsave
    }

    fn set_xsave(&mut self, image: &[u8]) {
        self.xsave = image.to_vec();
    }

    fn set_address_space(&mut self, mode: GuestMode, space: AddressSpace) {
        match mode {
            GuestMode::Kernel => self.kernel = space,
            GuestMode::User => self.user = space,
        }
    }

    fn address_space(&self, mode: GuestMode) -> AddressSpace {
        if mode == GuestMode::Kernel { self.kernel } else { self.user }
    }

    fn set_mode(&mut self, mode: GuestMode, code: CodeSize) {
        (self.mode, self.code) = (mode, code);
    }

    fn mode(&self) -> GuestMode {
        self.mode
    }

    fn code_size(&self) -> CodeSize {
        self.code
    }

    fn set_breakpoints(&mut self, _breakpoints: &[Option<Breakpoint>; NR_BREAKPOINTS]) {}

    fn set_task_switched(&mut self, _is_set: bool) {}

    fn set_guards(&mut self, _guards: Guards) {}

    fn set_xcr0(&mut self, _xcr0: u64) {}

    fn flush(&mut self, _flush: Flush) {}

    fn control(&self) -> Arc<dyn VcpuControl> {
        self.control.clone()
    }

    fn run(&mut self) -> Exit {
        self.control.in_guest.store(true, Ordering::SeqCst);
        let exit = loop {
            let requests = Requests(self.control.requests.swap(0, Ordering::SeqCst) & !Requests::ENGINE.0);
            if !requests.is_empty() {
                break Exit::Interrupted(requests);
            }
            if let Some(step) = self.scripts.pop(self.id) {
                break step(&mut self.regs);
            }
            // Nothing to do: a guest that spins.
            std::thread::sleep(Duration::from_micros(50));
        };
        self.control.in_guest.store(false, Ordering::SeqCst);
        exit
    }

    fn step(&mut self, _intercept: Option<(Mfn, &mut dyn WriteIntercept)>) -> Exit {
        Exit::Stepped
    }
}

/// The engine; all its domains share one script.
#[derive(Debug, Default)]
pub struct DoubleEngine {
    pub scripts: Scripts,
}

#[derive(Debug)]
struct DoubleDomain(Scripts);

impl DomainEngine for DoubleDomain {
    fn hide(&self, _features: Features) {}

    fn create_vcpu(&self, id: u32, _config: &Config) -> Result<Box<dyn Vcpu>, Error> {
        Ok(Box::new(DoubleVcpu {
            id,
            regs: Regs::default(),
            mode: GuestMode::Kernel,
            code: CodeSize::Bits64,
            kernel: AddressSpace::default(),
            user: AddressSpace::default(),
            xsave: vec![0; 832],
            control: Arc::default(),
            scripts: self.0.clone(),
        }))
    }
}

impl Engine for DoubleEngine {
    fn name(&self) -> &'static str {
        "double"
    }

    fn create_domain(&self, _machine: &Arc<Machine>) -> Result<Arc<dyn DomainEngine>, Error> {
        Ok(Arc::new(DoubleDomain(self.scripts.clone())))
    }

    fn invalidate_code(&self, _mfn: Mfn) {}
}
