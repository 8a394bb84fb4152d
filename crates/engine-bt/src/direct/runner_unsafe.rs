//! The hypervisor's side of one runner process: the shared pages, the notifications, the mapper's channel.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ring3_machine::PAGE_SIZE_BYTES;

use super::filter::filter;
use super::frame::{Frame, UCONTEXT_BYTES};
use super::host_unsafe::{bind_thread, cpu_time_ns, end, kick};
use super::layout::{
    COMMAND_WORDS, NR_COMMANDS, NR_PATCHED, PATCHED_AT, SHARED, STACK_AT, STACK_BYTES, WORDS_AT, word,
};
use super::messages_unsafe::{pair, receive};
use super::nursery_unsafe::{CAUGHT, Nursery};
use super::plan::Command;
use super::stub_unsafe;
use crate::dispatch::xstate::IMAGE_BYTES;

/// How long a runner may take to answer at its start.
const START_MS: i32 = 5000;
/// How often a runner that ignores kicks is looked at, and how often before it is ended.
const PATIENCE_MS: i32 = 50;
const PATIENCE: u32 = 20;

/// The shared pages and the copies behind them.
const FILE_BYTES: usize = PATCHED_AT as usize + NR_PATCHED * PAGE_SIZE_BYTES;

/// `struct seccomp_notif`, with `struct seccomp_data` in it. Source: Linux include/uapi/linux/seccomp.h.
#[repr(C)]
#[derive(Default)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    nr: i32,
    arch: u32,
    instruction_pointer: u64,
    args: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
#[derive(Default)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const NOTIF_RECV: u64 = 0xc050_2100;
const NOTIF_SEND: u64 = 0xc018_2101;
const NOTIF_SET_FLAGS: u64 = 0x4008_2104;
/// Wake the other side on this CPU: the two take turns.
const FD_SYNC_WAKE_UP: u64 = 1;
const _: () = assert!(size_of::<Notification>() == 80 && size_of::<Response>() == 24);

/// What became of a runner that was let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It is parked; its frame may be read.
    Parked,
    /// It is dead, or had to be ended.
    Lost,
}

/// What was signalled, as the stub noted it.
#[derive(Clone, Copy, Debug)]
pub struct Note {
    pub signal: i32,
    /// `si_call_addr` of a SIGSYS.
    pub call_address: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    /// DS, ES, FS, GS.
    pub selectors: [u16; 4],
}

/// A runner process.
#[derive(Debug)]
pub struct Runner {
    nursery: Arc<Nursery>,
    pid: i32,
    mapper: i32,
    channel: OwnedFd,
    listener: OwnedFd,
    shared: NonNull<u8>,
    /// Notification that holds the runner, if it is parked.
    parked: Option<u64>,
    /// The first frame: what of it is not registers is written back as it was each time.
    template: Box<Frame>,
    /// Offsets of `ucontext`, the extended state and `siginfo` in the shared pages.
    ucontext_at: usize,
    fpstate_at: usize,
    siginfo_at: usize,
    /// CPU that both sides are bound to; -1 at first.
    cpu: i32,
}

// SAFETY: the mapping is this runner's own, and is reached through `&mut self` or atomics only.
unsafe impl Send for Runner {}

impl Runner {
    /// Forks a runner and waits until it is parked, with an empty address space.
    ///
    /// # Errors
    /// The host's: no seccomp notifications, no memory, no processes.
    pub fn start(nursery: &Arc<Nursery>, machine: BorrowedFd<'_>) -> io::Result<Self> {
        let (memfd, shared) = shared_pages()?;
        let mut runner = Self::fork(nursery, machine, &memfd, shared)?;
        if runner.wait_parked(START_MS)? {
            runner.learn_frame()?;
            return Ok(runner);
        }
        Err(io::Error::from(io::ErrorKind::TimedOut))
    }

    fn fork(nursery: &Arc<Nursery>, machine: BorrowedFd<'_>, memfd: &OwnedFd, shared: NonNull<u8>) -> io::Result<Self> {
        let (channel, theirs) = pair(libc::SOCK_STREAM)?;
        let mut runner = Self {
            nursery: Arc::clone(nursery),
            pid: 0,
            mapper: 0,
            listener: channel.try_clone()?,
            channel,
            shared,
            parked: None,
            template: Box::new(Frame { ucontext: [0; UCONTEXT_BYTES], xsave: [0; IMAGE_BYTES] }),
            ucontext_at: 0,
            fpstate_at: 0,
            siginfo_at: 0,
            cpu: -1,
        };
        runner.prepare_words();
        runner.pid = nursery.spawn(theirs.as_fd(), machine, memfd.as_fd())?;
        drop(theirs);
        if !poll(&runner.channel, START_MS)? {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        let (mut byte, mut fds) = ([0u8; 1], [-1i32; 1]);
        if receive(runner.channel.as_raw_fd(), &mut byte, &mut fds)? != (1, 1) {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        // SAFETY: the descriptor was just received, and is ours.
        runner.listener = unsafe { OwnedFd::from_raw_fd(fds[0]) };
        runner.mapper = runner.load(word_at(word::MAPPER_TID)) as i32;
        // Where the kernel is older than 6.6 the flag is refused, which costs time only.
        // SAFETY: an integer argument.
        unsafe { libc::ioctl(runner.listener.as_raw_fd(), NOTIF_SET_FLAGS, FD_SYNC_WAKE_UP) };
        Ok(runner)
    }

    /// What the stub expects in the words before it runs.
    fn prepare_words(&mut self) {
        let there = |at: usize| SHARED + WORDS_AT + at as u64;
        let caught = CAUGHT.iter().fold(0u64, |mask, signal| mask | 1 << (signal - 1));
        self.store(word_at(word::LISTENER), u64::from(stub_unsafe::NO_LISTENER as u32));
        self.store(word_at(word::SIGNAL_MASK), !caught);
        let filter = filter();
        self.store(word_at(word::FILTER), filter.len() as u64);
        self.store(word_at(word::FILTER + 8), there(word::FILTER_CODE));
        for (index, instruction) in filter.into_iter().enumerate() {
            self.store(word_at(word::FILTER_CODE + 8 * index), instruction);
        }
        // `struct msghdr`: name, its length, iovec, their number, control, its length, flags.
        let control_bytes = 24;
        let message = [0, 0, there(word::IOVEC), 1, there(word::CONTROL), control_bytes, 0];
        let control = [20, (libc::SCM_RIGHTS as u64) << 32 | libc::SOL_SOCKET as u64, 0];
        let iovec = [there(word::RESULT), 1];
        for (at, words) in [(word::MESSAGE, &message[..]), (word::IOVEC, &iovec), (word::CONTROL, &control)] {
            for (index, &value) in words.iter().enumerate() {
                self.store(word_at(at + 8 * index), value);
            }
        }
    }

    /// Notes where the kernel puts the frame, which is the same for each signal.
    fn learn_frame(&mut self) -> io::Result<()> {
        let unexpected = || io::Error::other("the host's signal frame has an unexpected form");
        let stack = SHARED + STACK_AT..SHARED + STACK_AT + STACK_BYTES;
        let within = |address: u64, len: usize| {
            let fits = address.is_multiple_of(8) && stack.contains(&address) && stack.contains(&(address + len as u64));
            fits.then(|| (address - SHARED) as usize).ok_or_else(unexpected)
        };
        self.ucontext_at = within(self.load(word_at(word::UCONTEXT)), UCONTEXT_BYTES)?;
        self.siginfo_at = within(self.load(word_at(word::SIGINFO)), 128)?;
        let mut frame = self.template.clone();
        self.copy_out(self.ucontext_at, &mut frame.ucontext);
        self.fpstate_at = within(frame.fpstate(), IMAGE_BYTES)?;
        self.copy_out(self.fpstate_at, &mut frame.xsave);
        self.template = frame;
        Ok(())
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The frame that a resumed runner returns by, to be filled with registers.
    pub fn template(&self) -> Frame {
        (*self.template).clone()
    }

    /// A copy of the frame of a parked runner.
    pub fn frame(&self) -> Frame {
        let mut frame = (*self.template).clone();
        self.copy_out(self.ucontext_at, &mut frame.ucontext);
        self.copy_out(self.fpstate_at, &mut frame.xsave);
        frame
    }

    /// What the stub noted when the runner parked.
    pub fn note(&self) -> Note {
        let selectors = self.load(word_at(word::SELECTORS)).to_le_bytes();
        let selector = |index: usize| u16::from_le_bytes([selectors[2 * index], selectors[2 * index + 1]]);
        Note {
            signal: self.load(word_at(word::SIGNAL)) as i32,
            call_address: self.load(self.siginfo_at + 16),
            fs_base: self.load(word_at(word::FS_BASE)),
            gs_base: self.load(word_at(word::GS_BASE)),
            selectors: [selector(0), selector(1), selector(2), selector(3)],
        }
    }

    /// Lets a parked runner go with the registers in `frame`.
    ///
    /// # Errors
    /// The host's: the runner is gone.
    pub fn resume(&mut self, frame: &Frame, fs_base: u64, gs_base: u64) -> io::Result<()> {
        let id = self.parked.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        self.copy_in(self.ucontext_at, &frame.ucontext);
        self.copy_in(self.fpstate_at, &frame.xsave);
        self.store(word_at(word::UCONTEXT), SHARED + self.ucontext_at as u64);
        self.store(word_at(word::FS_BASE), fs_base);
        self.store(word_at(word::GS_BASE), gs_base);
        let mut response = Response { id, ..Response::default() };
        // SAFETY: the structure is the one that the call takes.
        let sent = unsafe { libc::ioctl(self.listener.as_raw_fd(), NOTIF_SEND, &raw mut response) };
        if sent == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Waits until the runner is parked again. `is_kicked` says whether somebody wants it to: a runner that runs on for
    /// long nevertheless (it can block signals by a forged return from one) is ended. One that a busy host does not let run
    /// ignores nothing.
    pub fn wait(&mut self, is_kicked: impl Fn() -> bool) -> Stopped {
        let (mut ignored, mut before) = (0, None);
        loop {
            match self.wait_parked(PATIENCE_MS) {
                Ok(true) => return Stopped::Parked,
                Ok(false) if is_kicked() => {
                    let now = cpu_time_ns(self.pid);
                    ignored += u32::from(now.is_none() || now != before);
                    before = now;
                    if ignored >= PATIENCE {
                        return Stopped::Lost;
                    }
                    kick(self.pid);
                }
                Ok(false) => {}
                Err(_) => return Stopped::Lost,
            }
        }
    }

    /// Whether the runner parked within the time.
    fn wait_parked(&mut self, timeout_ms: i32) -> io::Result<bool> {
        if !poll(&self.listener, timeout_ms)? {
            return Ok(false);
        }
        let mut notification = Notification::default();
        // SAFETY: the structure is the one that the call takes, zeroed as it asks.
        if unsafe { libc::ioctl(self.listener.as_raw_fd(), NOTIF_RECV, &raw mut notification) } != 0 {
            return Err(io::Error::last_os_error());
        }
        self.parked = Some(notification.id);
        Ok(true)
    }

    /// Has the mapper execute `commands`, in order. The runner is parked.
    ///
    /// # Errors
    /// The first that the host gave, or that of a mapper that is gone.
    pub fn map(&mut self, commands: &[Command]) -> io::Result<()> {
        for batch in commands.chunks(NR_COMMANDS) {
            for (index, command) in batch.iter().enumerate() {
                self.put_command(index, &command.words());
            }
            self.store(8 * COMMAND_WORDS * batch.len(), 0);
            let fd = self.channel.as_raw_fd();
            let mut result = [0u8; 8];
            // SAFETY: the buffers are locals of the lengths given.
            let done = unsafe {
                libc::write(fd, [0u8].as_ptr().cast(), 1) == 1
                    && libc::recv(fd, result.as_mut_ptr().cast(), result.len(), libc::MSG_WAITALL) == 8
            };
            if !done {
                return Err(io::Error::from(io::ErrorKind::BrokenPipe));
            }
            match i64::from_le_bytes(result) {
                0 => {}
                error => return Err(io::Error::from_raw_os_error(-error as i32)),
            }
        }
        Ok(())
    }

    /// Puts the copy of a code page into a slot.
    pub fn put_patched(&self, slot: usize, page: &[u8; PAGE_SIZE_BYTES]) {
        self.copy_in(PATCHED_AT as usize + slot.min(NR_PATCHED - 1) * PAGE_SIZE_BYTES, page);
    }

    fn put_command(&self, index: usize, words: &[u64; COMMAND_WORDS]) {
        for (word, &value) in words.iter().enumerate() {
            self.store(8 * (COMMAND_WORDS * index + word), value);
        }
    }

    /// Binds runner and mapper to a CPU, the caller's: the two sides never run at once, and a switch is dearer across.
    pub fn bind(&mut self, cpu: i32) {
        if self.cpu != cpu {
            self.cpu = cpu;
            bind_thread(self.pid, cpu);
            bind_thread(self.mapper, cpu);
        }
    }

    /// Ends a runner that nothing holds, and waits until it has lost its memory: frames that it has mapped may be another's next.
    fn stop_for_good(&self) {
        end(self.pid);
        // Its threads let go of their memory before the channel, which nobody else holds.
        let has_ended =
            || poll(&self.channel, PATIENCE_MS).map_or(true, |has_word| has_word && self.is_channel_closed());
        // One that is killed and does not get that far is somewhere in its host, not in guest code.
        let _ = (0..PATIENCE).any(|_| has_ended());
    }

    /// Takes what the channel has; whether it has come to its end.
    fn is_channel_closed(&self) -> bool {
        let mut rest = [0u8; 64];
        // SAFETY: the buffer is a local of the length given.
        unsafe { libc::recv(self.channel.as_raw_fd(), rest.as_mut_ptr().cast(), rest.len(), libc::MSG_DONTWAIT) == 0 }
    }

    fn atomic(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= FILE_BYTES, "an offset of ours");
        // SAFETY: 1. Within the mapping and aligned, just checked. 2. Other processes write to it: atomics allow that.
        unsafe { &*self.shared.as_ptr().add(at).cast::<AtomicU64>() }
    }

    fn load(&self, at: usize) -> u64 {
        self.atomic(at).load(Ordering::Relaxed)
    }

    fn store(&self, at: usize, value: u64) {
        self.atomic(at).store(value, Ordering::Relaxed);
    }

    fn copy_out(&self, at: usize, bytes: &mut [u8]) {
        for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&self.load(at + 8 * index).to_ne_bytes());
        }
    }

    fn copy_in(&self, at: usize, bytes: &[u8]) {
        for (index, word) in bytes.chunks_exact(8).enumerate() {
            self.store(at + 8 * index, word.try_into().map_or(0, u64::from_ne_bytes));
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if self.pid > 0 {
            if self.parked.is_none() {
                self.stop_for_good();
            }
            self.nursery.end(self.pid);
        }
        // SAFETY: the mapping is ours, and nothing refers to it any more.
        unsafe { libc::munmap(self.shared.as_ptr().cast(), FILE_BYTES) };
    }
}

fn word_at(offset: usize) -> usize {
    WORDS_AT as usize + offset
}

fn shared_pages() -> io::Result<(OwnedFd, NonNull<u8>)> {
    // SAFETY: 1. The name is NUL-terminated. 2. Results are checked. 3. The mapping is new, at an address of the kernel's choice.
    unsafe {
        let fd = libc::memfd_create(c"ring3-runner".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let memfd = OwnedFd::from_raw_fd(fd);
        if libc::ftruncate(fd, FILE_BYTES as i64) != 0 {
            return Err(io::Error::last_os_error());
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let at = libc::mmap(std::ptr::null_mut::<c_void>(), FILE_BYTES, protection, libc::MAP_SHARED, fd, 0);
        match NonNull::new(at.cast::<u8>()) {
            Some(shared) if at != libc::MAP_FAILED => Ok((memfd, shared)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Waits until a descriptor can be read; false after the time.
fn poll(fd: &OwnedFd, timeout_ms: i32) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry.
    match unsafe { libc::poll(&raw mut entry, 1, timeout_ms) } {
        0 => Ok(false),
        1 if entry.revents & libc::POLLIN != 0 => Ok(true),
        1 => Err(io::Error::from(io::ErrorKind::BrokenPipe)),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
    }
}
