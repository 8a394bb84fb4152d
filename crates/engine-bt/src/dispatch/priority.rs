//! Which fault an instruction takes of several that it deserves: some come before that of its memory operand.
//! Source: Intel SDM vol. 3, "Priority Among Simultaneous Exceptions and Interrupts".

use iced_x86::{CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind};
use ring3_engine::{Exit, vector};

use super::state_unsafe;
use super::vcpu::BtVcpu;
use crate::tlb::{self, Stop};

/// Exception summary in the x87 status word: an unmasked exception is pending.
const X87_PENDING: u16 = 0x80;

impl BtVcpu {
    /// What is to be done about an access of `size` bytes at `va` that `stop` keeps from being done.
    pub(super) fn first_stop(&mut self, va: u64, size: usize, stop: Stop) -> Stop {
        let Stop::Fault(Exit::Exception { .. }) = stop else { return stop };
        let is_misaligned = matches!(size, 16 | 32) && !va.is_multiple_of(size as u64);
        let is_pending = state_unsafe::x87_status(self.state_ptr()) & X87_PENDING != 0;
        if !is_misaligned && !is_pending {
            return stop;
        }
        let rip = self.rip_at(tlb::instruction_offset(self.state().access_info));
        let Ok(instr) = self.fetch(rip) else { return stop };
        let exception = |vector, error_code| Stop::Fault(Exit::Exception { vector, error_code, cr2: 0 });
        if is_pending && waits_for_x87(&instr) {
            return exception(vector::MF, None);
        }
        if is_misaligned && must_be_aligned(&instr) { exception(vector::GP, Some(0)) } else { stop }
    }
}

/// Whether a misaligned vector operand raises #GP.
fn must_be_aligned(instr: &Instruction) -> bool {
    use Mnemonic as M;
    let is_vector = (0..instr.op_count()).any(|op| {
        let register = instr.op_register(op);
        instr.op_kind(op) == OpKind::Register && (register.is_vector_register() || register.is_mm())
    });
    match instr.mnemonic() {
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntdq | M::Vmovntps | M::Vmovntpd | M::Vmovntdqa => true,
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu => false,
        M::Pcmpestri | M::Pcmpestrm | M::Pcmpistri | M::Pcmpistrm => false,
        M::Pcmpestri64 | M::Pcmpestrm64 => false,
        M::Cmpxchg16b => true,
        _ if instr.cpuid_features().contains(&CpuidFeature::SHA) => false,
        _ => instr.encoding() == EncodingKind::Legacy && is_vector && instr.memory_size().size() == 16,
    }
}

/// Whether a pending x87 exception is raised first.
fn waits_for_x87(instr: &Instruction) -> bool {
    use CpuidFeature as F;
    use Mnemonic as M;
    if matches!(instr.mnemonic(), M::Fnstsw | M::Fnstcw | M::Fnstenv | M::Fnsave | M::Fninit | M::Fnclex) {
        return false;
    }
    let is_x87 = |f: &F| matches!(f, F::FPU | F::FPU287 | F::FPU387);
    instr.cpuid_features().iter().any(is_x87)
        || (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Register && instr.op_register(op).is_mm())
}
