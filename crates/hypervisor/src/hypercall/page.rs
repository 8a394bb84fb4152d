//! The hypercall page of a PV64 guest. Source: the ABI map, section 1.

use ring3_abi::hypercall::__HYPERVISOR_iret;

const SLOT_BYTES: usize = 32;
const NR_SLOTS: usize = 128;

/// 128 slots of 32 bytes; slot n makes hypercall n and returns. Slot 23 (iret) is jumped to and does not return.
pub fn page_image() -> [u8; 4096] {
    let mut page = [0xccu8; 4096];
    for (number, slot) in (0u32..).zip(page.chunks_exact_mut(SLOT_BYTES)).take(NR_SLOTS) {
        let [b0, b1, b2, b3] = number.to_le_bytes();
        // push rcx; push r11; then for iret: push rax; mov eax, number; syscall.
        let stub: &[u8] = if number == __HYPERVISOR_iret {
            &[0x51, 0x41, 0x53, 0x50, 0xb8, b0, b1, b2, b3, 0x0f, 0x05]
        } else {
            // mov eax, number; syscall; pop r11; pop rcx; ret.
            &[0x51, 0x41, 0x53, 0xb8, b0, b1, b2, b3, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3]
        };
        if let Some(target) = slot.get_mut(..stub.len()) {
            target.copy_from_slice(stub);
        }
    }
    page
}
