use std::sync::atomic::Ordering;

use crate::{Error, Machine, Mfn};

#[test]
fn test_frames_start_as_zeros_and_keep_bytes() {
    let machine = Machine::new(4).unwrap();
    machine.write(Mfn(3), 4090, b"ring3!").unwrap();
    let mut out = [0u8; 8];
    machine.read(Mfn(3), 4088, &mut out).unwrap();
    assert_eq!(&out, b"\0\0ring3!");
    machine.discard(Mfn(3), 1).unwrap();
    machine.read(Mfn(3), 4088, &mut out).unwrap();
    assert_eq!(out, [0; 8]);
}

#[test]
fn test_accesses_outside_are_refused() {
    let machine = Machine::new(2).unwrap();
    assert!(matches!(machine.frame(Mfn(2)), Err(Error::NoSuchFrame { .. })));
    assert!(matches!(machine.frame(Mfn(u64::MAX)), Err(Error::NoSuchFrame { .. })));
    assert!(matches!(machine.write(Mfn(0), 4095, b"ab"), Err(Error::OutsideFrame { .. })));
    assert!(matches!(machine.word64(Mfn(0), 4), Err(Error::Misaligned { .. })));
    assert!(machine.entry(Mfn(0), usize::MAX).is_err());
    assert!(machine.discard(Mfn(1), u64::MAX).is_err());
    assert!(Machine::new(u64::MAX).is_err());
}

#[test]
fn test_words_are_shared_with_bytes() {
    let machine = Machine::new(1).unwrap();
    machine.word64(Mfn(0), 8).unwrap().store(0x0102_0304_0506_0708, Ordering::SeqCst);
    let mut out = [0u8; 8];
    machine.read(Mfn(0), 8, &mut out).unwrap();
    assert_eq!(out, [8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(machine.entry(Mfn(0), 1).unwrap(), 0x0102_0304_0506_0708);
}

#[test]
fn test_code_marks() {
    let machine = Machine::new(2).unwrap();
    assert!(!machine.code().has_code(Mfn(1)));
    assert!(!machine.code().mark(Mfn(1)));
    assert!(machine.code().mark(Mfn(1)));
    assert!(!machine.code().is_settled(Mfn(1)));
    machine.code().settle(Mfn(1));
    assert!(machine.code().is_settled(Mfn(1)));
    assert!(machine.code().clear(Mfn(1)));
    machine.code().settle(Mfn(1));
    assert!(!machine.code().is_settled(Mfn(1)), "the mark was gone");
    assert!(!machine.code().has_code(Mfn(1)));
    assert!(!machine.code().mark(Mfn(9)));
}

#[test]
fn test_frames_without_host_memory_are_known() {
    let machine = Machine::new(64).unwrap();
    assert_eq!(machine.next_resident(Mfn(0)), None);
    machine.write(Mfn(5), 0, b"a").unwrap();
    machine.write(Mfn(6), 4095, b"b").unwrap();
    machine.write(Mfn(63), 0, &[0; 4096]).unwrap();
    assert_eq!(machine.next_resident(Mfn(0)), Some(5..7));
    assert_eq!(machine.next_resident(Mfn(6)), Some(6..7));
    assert_eq!(machine.next_resident(Mfn(7)), Some(63..64));
    assert_eq!(machine.next_resident(Mfn(64)), None);
    assert!(
        !machine.is_zero(Mfn(5)).unwrap() && !machine.is_zero(Mfn(6)).unwrap() && machine.is_zero(Mfn(63)).unwrap()
    );
    machine.discard(Mfn(63), 1).unwrap();
    assert_eq!(machine.next_resident(Mfn(7)), None);
}
