//! Guest code of any bytes: translated, verified, and run, from registers that point to the host's memory, too. Nothing
//! changes but the guest's own pages.
#![no_main]

#[path = "../../crates/engine-bt/tests/support/mod.rs"]
mod support;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use ring3_engine::{CodeSize, Exit, GprName, GuestMode, Requests};
use ring3_engine_bt::{BtEngine, DirectPolicy, Options};
use ring3_machine::Mfn;
use support::{CODE, DATA, FIRST, Guest, NR_PAGES};

/// Frames that the guest's tables do not lead to.
const FOREIGN: std::ops::Range<u64> = FIRST + NR_PAGES..40;
const CANARY: u8 = 0x5a;

thread_local! {
    static GUEST: RefCell<Guest> = RefCell::new(make());
}

fn make() -> Guest {
    let options = Options { direct: DirectPolicy::Never, ..Options::default() };
    let guest = Guest::with_engine(BtEngine::with_options(options).unwrap());
    for mfn in FOREIGN {
        guest.machine.write(Mfn(mfn), 0, &[CANARY; 4096]).unwrap();
    }
    // Guest code may loop: an event ends the run.
    let control = guest.vcpu.control();
    std::thread::spawn(move || {
        loop {
            control.request(Requests::EVENT);
            std::thread::sleep(std::time::Duration::from_micros(300));
        }
    });
    guest
}

fn run(guest: &mut Guest, data: &[u8]) -> Option<()> {
    let (&kind, data) = data.split_first()?;
    let (values, code) = data.split_at_checked(16)?;
    if code.is_empty() {
        return None;
    }
    let code = &code[..code.len().min(256)];
    // Against the end of a page, so that blocks cross it.
    let start = if kind & 4 == 0 { CODE } else { CODE + 4096 - code.len() as u64 / 2 };
    guest.write(start & !0xfff, &[0x90; 4096]);
    if start != CODE {
        guest.write(CODE + 4096, &[0x90; 4096]);
    }
    let split = ((CODE + 4096).saturating_sub(start) as usize).min(code.len());
    guest.write(start, &code[..split]);
    if split < code.len() {
        guest.write(CODE + 4096, &code[split..]);
    }
    let space = guest.vcpu.address_space(GuestMode::Kernel);
    guest.vcpu.set_address_space(GuestMode::User, space);
    let mode = if kind & 1 == 0 { GuestMode::Kernel } else { GuestMode::User };
    guest.vcpu.set_mode(mode, if kind & 2 == 0 { CodeSize::Bits64 } else { CodeSize::Bits32 });
    let host = guest.machine.base() as u64;
    for (index, &value) in values.iter().enumerate() {
        guest.vcpu.regs_mut().gpr[index] = match value >> 5 {
            0 => u64::from(value & 31),
            1 => host + u64::from(value & 31) * 4096,
            2 => u64::MAX - u64::from(value & 31),
            3 => 0xffff_8000_0000_0000 + u64::from(value & 31) * 8,
            4 => &raw const *guest as u64 + u64::from(value & 31) * 64,
            // The end of the data, the stack and what comes behind it.
            5 => DATA + 0x1000 * u64::from(value & 7) + 0xff0 + u64::from(value & 31),
            _ => DATA + u64::from(value & 63) * 128,
        };
    }
    let regs = guest.vcpu.regs_mut();
    (regs.rip, regs.rflags) = (start, 0x202 | u64::from(kind) << 3 & 0x4d5);
    (regs.fs_base, regs.gs_base) = (host, DATA);
    for _ in 0..4 {
        let exit = if kind & 8 == 0 { guest.vcpu.run() } else { guest.vcpu.step(None) };
        assert!(!matches!(exit, Exit::Failed(_)), "{exit:?}");
        if matches!(exit, Exit::Exception { .. } | Exit::Privileged) {
            break;
        }
    }
    let _ = guest.gpr(GprName::Rax);
    let mut page = vec![0; 4096];
    for mfn in FOREIGN {
        guest.machine.read(Mfn(mfn), 0, &mut page).unwrap();
        assert!(page.iter().all(|&byte| byte == CANARY), "frame {mfn} was changed");
    }
    Some(())
}

fuzz_target!(|data: &[u8]| {
    GUEST.with_borrow_mut(|guest| run(guest, data));
});
