//! The oracle: a child process that runs sequences on the host CPU.
//!
//! The child maps the same pages at the same addresses as the guest. It lives in its signal handler: the trap or fault
//! that ends one sequence is the signal whose frame, rewritten, starts the next. A sequence that takes the child with
//! it costs a new child.
#![allow(unsafe_code)]

use std::arch::asm;
use std::ptr::addr_of_mut;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use crate::ldt::{Ldt, UserDesc};
use crate::state::{
    CODE, CODE_BYTES, CpuState, DATA, End, HOLE, LAST_DATA, MEMORY_BYTES, MEMORY_END, READ_ONLY, READ_ONLY_TOO,
    SELECTOR, WRITABLE_CODE,
};

/// Most sequences at a time.
pub const MAX_BATCH: usize = 128;
const ALT_STACK_BYTES: usize = 256 << 10;
const SIGNALS: [libc::c_int; 6] =
    [libc::SIGTRAP, libc::SIGILL, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGSYS];
/// Milliseconds that a batch may take.
const PATIENCE: libc::c_int = 2000;
/// Index in `gregs` of the registers in hardware order.
const GREGS: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];
/// Parts of an XSAVE image. Source: Intel SDM vol. 1, "XSAVE Area".
const XMM_AT: usize = 160;
const XSTATE_BV_AT: usize = 512;
const YMM_AT: usize = 576;

/// One sequence: what it starts from and what it left.
#[repr(C)]
pub struct Slot {
    pub input: CpuState,
    pub output: CpuState,
    pub trap: u64,
    pub error: u64,
    pub cr2: u64,
    pub memory: [u8; MEMORY_BYTES],
}

/// Memory shared with the child.
#[repr(C)]
pub struct Shared {
    pub count: u64,
    /// Whether the read-only page can be written for once.
    pub all_writable: u64,
    pub code: [u8; CODE_BYTES],
    /// What the data pages hold before each sequence.
    pub memory: [u8; MEMORY_BYTES],
    /// Descriptors that selectors name.
    pub ldt: Ldt,
    /// Number of sequences finished.
    done: u64,
    pub slots: [Slot; MAX_BATCH],
}

impl Slot {
    /// How the sequence ended.
    pub fn end(&self) -> End {
        match self.trap {
            3 => End::Trap,
            vector => End::Exception { vector, error: self.error, cr2: self.cr2 },
        }
    }
}

/// What the child's handler knows.
struct Child {
    shared: *mut Shared,
    code: *mut u8,
    requests: libc::c_int,
    replies: libc::c_int,
    next: u64,
    running: bool,
}

static CHILD: AtomicPtr<Child> = AtomicPtr::new(std::ptr::null_mut());
static HOST_FS: AtomicU64 = AtomicU64::new(0);

/// The parent's side.
pub struct Native {
    shared: *mut Shared,
    memfd: libc::c_int,
    pid: libc::pid_t,
    requests: libc::c_int,
    replies: libc::c_int,
    pub nr_lost: u64,
}

impl Native {
    pub fn new() -> Self {
        // SAFETY: system calls with checked results; the mapping lives as long as `self`.
        unsafe {
            let len = size_of::<Shared>();
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let raw = libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0);
            assert!(raw != libc::MAP_FAILED, "no memory for the oracle");
            let memfd = libc::memfd_create(c"oracle-code".as_ptr(), libc::MFD_CLOEXEC);
            assert!(memfd >= 0 && libc::ftruncate(memfd, CODE_BYTES as i64) == 0, "no memory for the oracle's code");
            let mut native = Self { shared: raw.cast(), memfd, pid: 0, requests: -1, replies: -1, nr_lost: 0 };
            native.spawn();
            native
        }
    }

    /// The batch. Only between `wait` and `submit`.
    pub fn shared(&mut self) -> &mut Shared {
        // SAFETY: the child waits in `read` between `wait` and `submit`; the memory lives as long as `self`.
        unsafe { &mut *self.shared }
    }

    fn spawn(&mut self) {
        // SAFETY: 1. The pipes are ours. 2. The child makes only system calls and touches memory made before the fork.
        unsafe {
            let (mut to, mut from) = ([0; 2], [0; 2]);
            assert!(
                libc::pipe2(to.as_mut_ptr(), libc::O_CLOEXEC) == 0
                    && libc::pipe2(from.as_mut_ptr(), libc::O_CLOEXEC) == 0
            );
            let alias = libc::mmap(
                std::ptr::null_mut(),
                CODE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.memfd,
                0,
            );
            let stack = Box::leak(vec![0u8; ALT_STACK_BYTES].into_boxed_slice());
            let child = Box::into_raw(Box::new(Child {
                shared: self.shared,
                code: alias.cast(),
                requests: to[0],
                replies: from[1],
                next: 0,
                running: false,
            }));
            let pid = libc::fork();
            assert!(pid >= 0, "cannot fork");
            if pid == 0 {
                CHILD.store(child, Ordering::SeqCst);
                libc::close(to[1]);
                libc::close(from[0]);
                serve(self.memfd, stack.as_mut_ptr());
            }
            libc::close(to[0]);
            libc::close(from[1]);
            drop(Box::from_raw(child));
            drop(Box::from_raw(std::ptr::from_mut::<[u8]>(stack)));
            libc::munmap(alias, CODE_BYTES);
            (self.pid, self.requests, self.replies) = (pid, to[1], from[0]);
        }
    }

    /// Starts the batch in `shared`.
    pub fn submit(&mut self) {
        self.shared().done = 0;
        // SAFETY: a write of one byte of our own to our own pipe.
        let sent = unsafe { libc::write(self.requests, [1u8].as_ptr().cast(), 1) };
        assert_eq!(sent, 1, "the oracle is gone");
    }

    /// Waits for the batch; returns how many of its sequences have results. The one after those, if any, was lost.
    pub fn wait(&mut self) -> usize {
        // SAFETY: 1. Descriptors and buffers are ours. 2. `pid` is our child, not waited for yet.
        unsafe {
            let mut poll = libc::pollfd { fd: self.replies, events: libc::POLLIN, revents: 0 };
            let ready = libc::poll(&raw mut poll, 1, PATIENCE);
            let mut byte = 0u8;
            if ready == 1 && libc::read(self.replies, (&raw mut byte).cast(), 1) == 1 {
                return self.shared().count as usize;
            }
            self.end();
            self.nr_lost += 1;
            let done = self.shared().done as usize;
            self.spawn();
            done
        }
    }

    fn end(&mut self) {
        // SAFETY: `pid` is our child and is waited for once.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
            libc::close(self.requests);
            libc::close(self.replies);
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        self.end();
        // SAFETY: both are ours and not used afterwards.
        unsafe {
            libc::munmap(self.shared.cast(), size_of::<Shared>());
            libc::close(self.memfd);
        }
    }
}

/// The child: maps the pages, installs the handlers and enters them.
///
/// # Safety
/// Runs in a fresh child, with `CHILD` set and `stack` of `ALT_STACK_BYTES`.
unsafe fn serve(memfd: libc::c_int, stack: *mut u8) -> ! {
    // SAFETY: 1. The fixed ranges are free in a position-independent executable (MAP_FIXED_NOREPLACE says so).
    // 2. The stack outlives the process.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let fixed = libc::MAP_FIXED_NOREPLACE;
        let (read, write, execute) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
        let code = libc::mmap(CODE as *mut _, CODE_BYTES, read | execute, libc::MAP_SHARED | fixed, memfd, 0);
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
        let data = libc::mmap(DATA as *mut _, MEMORY_BYTES, read | write, anonymous, -1, 0);
        libc::mprotect(WRITABLE_CODE as *mut _, 4096, read | write | execute);
        libc::mprotect(HOLE as *mut _, 4096, libc::PROT_NONE);
        if code as u64 != CODE || data as u64 != DATA {
            libc::_exit(70);
        }
        let on = libc::stack_t { ss_sp: stack.cast(), ss_flags: 0, ss_size: ALT_STACK_BYTES };
        libc::sigaltstack(&raw const on, std::ptr::null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in SIGNALS {
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        if !refuse_calls_of_sequences() {
            libc::_exit(72);
        }
        let fs: u64;
        asm!("rdfsbase {}", out(reg) fs);
        HOST_FS.store(fs, Ordering::SeqCst);
        // 32-bit code needs data segments; 64-bit code does not look at them.
        asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) SELECTOR);
        asm!("int3");
        libc::_exit(71)
    }
}

/// Has the kernel refuse every system call that a sequence makes: bytes that mean anything may mean that.
///
/// # Safety
/// Runs in the child, whose own calls come from elsewhere.
unsafe fn refuse_calls_of_sequences() -> bool {
    // Source: linux/audit.h; linux/seccomp.h, struct seccomp_data.
    const ARCH_X86_64: u32 = 0xc000_003e;
    const ARCH_AT: u32 = 4;
    const POINTER_AT: u32 = 8;
    let op = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let at_least = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    let end = libc::BPF_RET | libc::BPF_K;
    let mut program = [
        op(load, ARCH_AT, 0, 0),
        op(equal, ARCH_X86_64, 0, 5),
        op(load, POINTER_AT + 4, 0, 0),
        op(equal, 0, 0, 4),
        op(load, POINTER_AT, 0, 0),
        op(at_least, CODE as u32, 0, 2),
        op(at_least, MEMORY_END as u32 + 0x1000, 1, 0),
        op(end, libc::SECCOMP_RET_TRAP, 0, 0),
        op(end, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program lives through the call.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    }
}

extern "C" fn handler(_signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: 1. The bases are restored before anything that could use thread-locals runs. 2. The kernel passes a valid
    // context with an XSAVE image. 3. `CHILD` was set before the first signal, and this is its only user.
    unsafe {
        let (fs, gs): (u64, u64);
        asm!("rdfsbase {}", "rdgsbase {}", "wrfsbase {}", "push 2", "popfq",
             out(reg) fs, out(reg) gs, in(reg) HOST_FS.load(Ordering::Relaxed));
        let child = &mut *CHILD.load(Ordering::Relaxed);
        let machine = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let image = machine.fpregs.cast::<u8>();
        if child.running {
            save(child, machine, image, fs, gs);
        }
        let input = next(child);
        let (fs, gs) = load(input, machine, image);
        // What a sequence loaded goes with it. The bases come last: selectors bring their own.
        let [_, ds, es, fs_selector, gs_selector] = (*input).selectors;
        asm!("mov ds, {0:x}", "mov es, {1:x}", in(reg) ds, in(reg) es);
        asm!("mov fs, {0:x}", "mov gs, {1:x}", in(reg) fs_selector, in(reg) gs_selector);
        asm!("wrfsbase {}", "wrgsbase {}", in(reg) fs, in(reg) gs);
    }
}

/// # Safety
/// As in `handler`; the results go to the running slot.
unsafe fn save(child: &mut Child, machine: &libc::mcontext_t, image: *const u8, fs: u64, gs: u64) {
    // SAFETY: the slot is inside the shared memory, which the parent leaves alone; the image is 832 bytes or more.
    unsafe {
        let slot = addr_of_mut!((*child.shared).slots[child.next as usize]);
        let out = &mut (*slot).output;
        for (value, index) in out.gpr.iter_mut().zip(GREGS) {
            *value = machine.gregs[index as usize] as u64;
        }
        out.cs = machine.gregs[libc::REG_CSGSFS as usize] as u64 & 0xffff;
        out.rip = machine.gregs[libc::REG_RIP as usize] as u64;
        out.rflags = machine.gregs[libc::REG_EFL as usize] as u64;
        (out.fs_base, out.gs_base) = (fs, gs);
        out.mxcsr = u64::from(image.add(24).cast::<u32>().read_unaligned());
        let present = image.add(XSTATE_BV_AT).read();
        std::ptr::copy_nonoverlapping(image, out.x87.as_mut_ptr(), 160);
        for (n, register) in out.ymm.iter_mut().enumerate() {
            register.fill(0);
            if present & 2 != 0 {
                std::ptr::copy_nonoverlapping(image.add(XMM_AT + 16 * n), register.as_mut_ptr(), 16);
            }
            if present & 4 != 0 {
                std::ptr::copy_nonoverlapping(image.add(YMM_AT + 16 * n), register.as_mut_ptr().add(16), 16);
            }
        }
        (*slot).trap = machine.gregs[libc::REG_TRAPNO as usize] as u64;
        (*slot).error = machine.gregs[libc::REG_ERR as usize] as u64;
        (*slot).cr2 = machine.gregs[libc::REG_CR2 as usize] as u64;
        let memory = addr_of_mut!((*slot).memory).cast::<u8>();
        for part in [DATA..HOLE, READ_ONLY_TOO..MEMORY_END] {
            let at = (part.start - DATA) as usize;
            std::ptr::copy_nonoverlapping(part.start as *const u8, memory.add(at), (part.end - part.start) as usize);
        }
        child.next += 1;
        (*child.shared).done = child.next;
    }
}

/// The next sequence to run, perhaps after waiting for a new batch. Its pages are ready.
///
/// # Safety
/// As in `handler`.
unsafe fn next(child: &mut Child) -> *const CpuState {
    // SAFETY: system calls on our own descriptors; the pages were mapped by `serve`.
    unsafe {
        let shared = child.shared;
        if !child.running || child.next >= (*shared).count {
            if child.running {
                libc::write(child.replies, [1u8].as_ptr().cast(), 1);
            }
            let mut byte = 0u8;
            if libc::read(child.requests, (&raw mut byte).cast(), 1) != 1 {
                libc::_exit(0);
            }
            std::ptr::copy_nonoverlapping(addr_of_mut!((*shared).code).cast::<u8>(), child.code, CODE_BYTES);
            child.next = 0;
            child.running = true;
        }
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let all_writable = (*shared).all_writable != 0;
        let is_first = child.next == 0;
        let protect = |page: u64, rights| libc::mprotect(page as *mut libc::c_void, 4096, rights);
        if is_first {
            write_ldt(addr_of_mut!((*shared).ldt));
            protect(READ_ONLY, rw);
            protect(READ_ONLY_TOO, rw);
        }
        let memory = addr_of_mut!((*shared).memory).cast::<u8>();
        let first_end = if is_first || all_writable { HOLE } else { READ_ONLY };
        let second = if is_first { READ_ONLY_TOO } else { LAST_DATA };
        for part in [DATA..first_end, second..MEMORY_END] {
            let from = memory.add((part.start - DATA) as usize);
            std::ptr::copy_nonoverlapping(from, part.start as *mut u8, (part.end - part.start) as usize);
        }
        if is_first {
            protect(READ_ONLY_TOO, libc::PROT_READ);
            if !all_writable {
                protect(READ_ONLY, libc::PROT_READ);
            }
        }
        addr_of_mut!((*shared).slots[child.next as usize].input).cast_const()
    }
}

/// Gives the child the descriptors of a batch.
///
/// # Safety
/// As in `handler`; `ldt` lies in the shared memory.
unsafe fn write_ldt(ldt: *const Ldt) {
    const WRITE: libc::c_int = 0x11;
    // SAFETY: the call copies a structure that is ours.
    unsafe {
        for (n, &descriptor) in (*ldt).0.iter().enumerate() {
            let entry = UserDesc::new(n as u32, descriptor);
            let written = libc::syscall(libc::SYS_modify_ldt, WRITE, &raw const entry, size_of::<UserDesc>());
            if written != 0 {
                libc::_exit(73);
            }
        }
    }
}

/// Rewrites the signal frame so that the return from the handler starts the sequence. Returns the FS and GS bases.
///
/// # Safety
/// As in `handler`.
unsafe fn load(input: *const CpuState, machine: &mut libc::mcontext_t, image: *mut u8) -> (u64, u64) {
    // SAFETY: `input` lies in the shared memory; the image is 832 bytes or more.
    unsafe {
        let input = &*input;
        for (value, index) in input.gpr.iter().zip(GREGS) {
            machine.gregs[index as usize] = *value as i64;
        }
        machine.gregs[libc::REG_RIP as usize] = input.rip as i64;
        machine.gregs[libc::REG_EFL as usize] = input.rflags as i64;
        // CS, GS, FS and SS, 16 bits each.
        machine.gregs[libc::REG_CSGSFS as usize] = input.cs as i64 | i64::from(input.selectors[0]) << 48;
        std::ptr::copy_nonoverlapping(input.x87.as_ptr(), image, 24);
        std::ptr::copy_nonoverlapping(input.x87.as_ptr().add(32), image.add(32), 128);
        image.add(24).cast::<u32>().write_unaligned(input.mxcsr as u32);
        for (n, register) in input.ymm.iter().enumerate() {
            std::ptr::copy_nonoverlapping(register.as_ptr(), image.add(XMM_AT + 16 * n), 16);
            std::ptr::copy_nonoverlapping(register.as_ptr().add(16), image.add(YMM_AT + 16 * n), 16);
        }
        image.add(XSTATE_BV_AT).cast::<u64>().write_unaligned(7);
        (input.fs_base, input.gs_base)
    }
}
