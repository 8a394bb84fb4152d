//! `vcpu_guest_context` to and from a vCPU's state: `VCPUOP_initialise` and the domctls.

use ring3_abi::arch_x86::{
    VGCF_failsafe_disables_events, VGCF_i387_valid, VGCF_in_kernel, VGCF_online, VGCF_syscall_disables_events,
    vcpu_guest_context,
};
use ring3_abi::errno;
use ring3_abi::xen::VMASST_TYPE_m2p_strict;
use ring3_engine::{AddressSpace, Flush, GprName, GuestMode, Segment, SegmentName, rflags};
use ring3_machine::Mfn;

use super::Domain;
use crate::memory::is_canonical;
use crate::vcpu::{Callback, Vcpu, VcpuState, descriptor};

/// Sets the whole state of a vCPU that does not run.
///
/// # Errors
/// -EINVAL for addresses, descriptor tables or page tables that the guest may not have; the vCPU is then as before,
/// except that a new GDT may be in force.
pub fn apply(
    m2p: (Mfn, u64),
    domain: &Domain,
    vcpu: &Vcpu,
    state: &mut VcpuState,
    context: &vcpu_guest_context,
) -> Result<(), i64> {
    let addresses = [
        context.event_callback_eip,
        context.failsafe_callback_eip,
        context.syscall_callback_eip,
        context.user_regs.rip,
        context.fs_base,
        context.gs_base_kernel,
        context.gs_base_user,
        context.ldt_base,
    ];
    if !addresses.into_iter().chain(context.trap_ctxt.iter().map(|t| t.address)).all(is_canonical) {
        return Err(errno::EINVAL);
    }
    if context.gdt_ents > 7168 || context.ldt_ents > 8192 || !context.ldt_base.is_multiple_of(4096) {
        return Err(errno::EINVAL);
    }
    let frames: Vec<Mfn> = context.gdt_frames.iter().map(|&mfn| Mfn(mfn)).collect();
    let nr_old = state.gdt_ents.div_ceil(512) as usize;
    let old = state.gdt_frames.get(..nr_old).unwrap_or_default().to_vec();
    let ents = u32::try_from(context.gdt_ents).map_err(|_| errno::EINVAL)?;
    domain.mm.set_gdt(&old, &frames, ents).map_err(|e| -e.errno())?;
    state.gdt_frames = [Mfn(0); 16];
    for (slot, &mfn) in state.gdt_frames.iter_mut().zip(&frames) {
        *slot = mfn;
    }
    state.gdt_ents = ents;

    let (root, user_root) = (Mfn::containing(context.ctrlreg[3]), Mfn::containing(context.ctrlreg[1]));
    domain.mm.new_baseptr(state.root(GuestMode::Kernel), root).map_err(|e| -e.errno())?;
    set_root(state, domain, m2p, GuestMode::Kernel, root);
    domain.mm.new_user_baseptr(state.root(GuestMode::User), user_root).map_err(|e| -e.errno())?;
    set_root(state, domain, m2p, GuestMode::User, user_root);

    *state.traps = context.trap_ctxt;
    for trap in state.traps.iter_mut() {
        trap.cs |= 3;
    }
    state.set_ldt(&domain.mm, context.ldt_base, u32::try_from(context.ldt_ents).unwrap_or(0));
    state.kernel_sp = context.kernel_sp;
    state.kernel_ss = (context.kernel_ss & 0xffff) as u16 | 3;
    state.event_callback = context.event_callback_eip;
    state.failsafe = Callback {
        address: context.failsafe_callback_eip,
        mask_events: context.flags & VGCF_failsafe_disables_events != 0,
    };
    state.syscall = Callback {
        address: context.syscall_callback_eip,
        mask_events: context.flags & VGCF_syscall_disables_events != 0,
    };
    state.set_task_switched(context.ctrlreg[0] & crate::vcpu::privileged::CR0_TS != 0);
    state.set_cr4(context.ctrlreg[4], domain.tsc.lock().is_emulated());
    state.iopl = ((context.user_regs.rflags >> 12) & 3) as u8;
    domain
        .vm_assist
        .fetch_or(context.vm_assist & crate::hypercall::VALID_ASSISTS, std::sync::atomic::Ordering::Relaxed);
    for (index, &value) in context.debugreg.iter().enumerate().filter(|(i, _)| !matches!(i, 4 | 5)) {
        // What the hypercall would refuse stays as it is, as on Xen.
        let _ = state.set_debugreg(index, value);
    }
    state.cpu.set_xsave(&xsave_image(context));
    load_registers(domain, state, context);
    state.must_load_segments = true;
    state.cpu.flush(Flush::All);
    vcpu.is_initialised.store(true, std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

/// Points a mode at a root. User mode sees the machine-to-phys table by roots that were a kernel's once, unless the domain is
/// strict. Source: xen/include/public/xen.h, VMASST_TYPE_m2p_strict.
pub fn set_root(state: &mut VcpuState, domain: &Domain, m2p: (Mfn, u64), mode: GuestMode, root: Mfn) {
    let is_strict = domain.has_assist(VMASST_TYPE_m2p_strict);
    let is_shown = mode == GuestMode::Kernel || (!is_strict && domain.mm.shows_m2p(root));
    let nr_m2p = if is_shown { m2p.1 } else { 0 };
    state.cpu.set_address_space(mode, AddressSpace { root, m2p: m2p.0, nr_m2p });
    if mode == GuestMode::Kernel && !is_strict && root.0 != 0 {
        domain.mm.show_m2p(root);
        if state.root(GuestMode::User) == root {
            set_root(state, domain, m2p, GuestMode::User, root);
        }
    }
}

fn load_registers(domain: &Domain, state: &mut VcpuState, context: &vcpu_guest_context) {
    let user = &context.user_regs;
    let is_kernel = context.flags & VGCF_in_kernel != 0;
    let regs = state.cpu.regs_mut();
    for (name, value) in [
        (GprName::Rax, user.rax),
        (GprName::Rcx, user.rcx),
        (GprName::Rdx, user.rdx),
        (GprName::Rbx, user.rbx),
        (GprName::Rsp, user.rsp),
        (GprName::Rbp, user.rbp),
        (GprName::Rsi, user.rsi),
        (GprName::Rdi, user.rdi),
        (GprName::R8, user.r8),
        (GprName::R9, user.r9),
        (GprName::R10, user.r10),
        (GprName::R11, user.r11),
        (GprName::R12, user.r12),
        (GprName::R13, user.r13),
        (GprName::R14, user.r14),
        (GprName::R15, user.r15),
    ] {
        regs.set(name, value);
    }
    regs.rip = user.rip;
    regs.rflags = crate::vcpu::iret::sanitize_flags(user.rflags) & !rflags::TF;
    regs.cs = user.cs | 3;
    regs.ss = user.ss | 3;
    (regs.ds, regs.es, regs.fs, regs.gs) = (user.ds, user.es, user.fs, user.gs);
    regs.fs_base = context.fs_base;
    (regs.gs_base, regs.kernel_gs_base) = if is_kernel {
        (context.gs_base_kernel, context.gs_base_user)
    } else {
        (context.gs_base_user, context.gs_base_kernel)
    };
    let code = descriptor::load_code(state, domain, user.cs).unwrap_or(Segment::FLAT_CODE64);
    let stack = descriptor::load_stack(state, domain, user.ss).unwrap_or(Segment::FLAT_DATA);
    let regs = state.cpu.regs_mut();
    regs.segments[SegmentName::Cs as usize] = code;
    regs.segments[SegmentName::Ss as usize] = stack;
    let mode = if is_kernel { GuestMode::Kernel } else { GuestMode::User };
    // Directly: the GS bases were just set for this mode.
    state.cpu.set_mode(mode, code.code_size());
}

fn xsave_image(context: &vcpu_guest_context) -> [u8; 576 + 256] {
    let mut image = [0u8; 576 + 256];
    if context.flags & VGCF_i387_valid != 0 {
        image[..512].copy_from_slice(&context.fpu_ctxt);
    } else {
        // FCW and MXCSR as after reset of the units by an OS: all exceptions masked.
        image[0..2].copy_from_slice(&0x037fu16.to_le_bytes());
        image[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    }
    // XSTATE_BV: x87 and SSE are in the image.
    image[512] = 3;
    image
}

/// The whole state of a vCPU that does not run.
pub fn capture(domain: &Domain, vcpu: &Vcpu, state: &mut VcpuState) -> vcpu_guest_context {
    let mut context: vcpu_guest_context = bytemuck::Zeroable::zeroed();
    if let Some(legacy) = state.cpu.xsave().get(..512) {
        context.fpu_ctxt.copy_from_slice(legacy);
    }
    let regs = state.cpu.regs();
    let is_kernel = state.is_kernel();
    let flag = |on: bool, flag: u64| if on { flag } else { 0 };
    context.flags = VGCF_i387_valid
        | flag(is_kernel, VGCF_in_kernel)
        | flag(state.failsafe.mask_events, VGCF_failsafe_disables_events)
        | flag(state.syscall.mask_events, VGCF_syscall_disables_events)
        | flag(vcpu.online.load(std::sync::atomic::Ordering::SeqCst), VGCF_online);
    let user = &mut context.user_regs;
    (user.rax, user.rcx, user.rdx) = (regs.get(GprName::Rax), regs.get(GprName::Rcx), regs.get(GprName::Rdx));
    (user.rbx, user.rsp, user.rbp) = (regs.get(GprName::Rbx), regs.get(GprName::Rsp), regs.get(GprName::Rbp));
    (user.rsi, user.rdi, user.r8) = (regs.get(GprName::Rsi), regs.get(GprName::Rdi), regs.get(GprName::R8));
    (user.r9, user.r10, user.r11) = (regs.get(GprName::R9), regs.get(GprName::R10), regs.get(GprName::R11));
    (user.r12, user.r13, user.r14) = (regs.get(GprName::R12), regs.get(GprName::R13), regs.get(GprName::R14));
    user.r15 = regs.get(GprName::R15);
    user.rip = regs.rip;
    user.rflags = regs.rflags | (u64::from(state.iopl) << 12);
    (user.cs, user.ss, user.ds) = (regs.cs, regs.ss, regs.ds);
    (user.es, user.fs, user.gs) = (regs.es, regs.fs, regs.gs);
    user.saved_upcall_mask = u8::from(vcpu.info.is_upcall_masked());
    context.trap_ctxt = *state.traps;
    (context.ldt_base, context.ldt_ents) = (state.ldt_base, u64::from(state.ldt_ents));
    for (slot, mfn) in context.gdt_frames.iter_mut().zip(&state.gdt_frames) {
        *slot = mfn.0;
    }
    context.gdt_ents = u64::from(state.gdt_ents);
    (context.kernel_ss, context.kernel_sp) = (u64::from(state.kernel_ss), state.kernel_sp);
    context.ctrlreg = [state.cr0, state.root(GuestMode::User).address(), state.cr2, 0, state.cr4, 0, 0, 0];
    context.ctrlreg[3] = state.root(GuestMode::Kernel).address();
    context.debugreg = state.debugreg;
    context.event_callback_eip = state.event_callback;
    context.failsafe_callback_eip = state.failsafe.address;
    context.syscall_callback_eip = state.syscall.address;
    context.vm_assist = domain.vm_assist.load(std::sync::atomic::Ordering::Relaxed);
    context.fs_base = regs.fs_base;
    (context.gs_base_kernel, context.gs_base_user) =
        if is_kernel { (regs.gs_base, regs.kernel_gs_base) } else { (regs.kernel_gs_base, regs.gs_base) };
    context
}
