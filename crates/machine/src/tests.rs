#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

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
    let bytes = [5, 6, 63].map(|mfn| machine.uniform_byte(Mfn(mfn)).unwrap());
    assert_eq!(bytes, [None, None, Some(0)]);
    machine.discard(Mfn(63), 1).unwrap();
    assert_eq!(machine.next_resident(Mfn(7)), None);
}

#[test]
fn test_folded_frames_hold_what_they_held() {
    let machine = Machine::new(64).unwrap();
    for mfn in 8..12 {
        machine.fill(Mfn(mfn), 0, 4096, 0xcc).unwrap();
    }
    assert_eq!(machine.uniform_byte(Mfn(8)).unwrap(), Some(0xcc));
    assert!(machine.fold(8..12, 0xcc));
    assert_eq!((machine.next_resident(Mfn(0)), machine.folded().len()), (None, 4));
    let mut bytes = [0; 8];
    machine.read(Mfn(9), 100, &mut bytes).unwrap();
    assert_eq!(bytes, [0xcc; 8]);
    machine.write(Mfn(10), 0, b"a").unwrap();
    assert_eq!(machine.word64(Mfn(10), 0).unwrap().load(Ordering::Relaxed), 0xcccc_cccc_cccc_cc61);
    assert_eq!((machine.next_resident(Mfn(0)), machine.folded().len()), (Some(9..11), 2));
    machine.discard(Mfn(8), 4).unwrap();
    assert_eq!(machine.uniform_byte(Mfn(11)).unwrap(), Some(0), "who frees a frame gets zeros");
}

#[test]
fn test_packed_frames_hold_what_they_held() {
    let machine = Machine::new(64).unwrap();
    let word = |mfn: u64, at: usize| if at.is_multiple_of(3) { mfn << 32 | at as u64 } else { 0 };
    for mfn in 8..14 {
        let words = (0..512).flat_map(|at| word(mfn, at).to_ne_bytes()).collect::<Vec<_>>();
        machine.write(Mfn(mfn), 0, &words).unwrap();
    }
    machine.expose(Mfn(10)).unwrap();
    assert_eq!(machine.pack(8..14), 5, "one is exposed");
    assert_eq!((machine.next_resident(Mfn(0)), machine.folded().len()), (Some(10..11), 5));
    assert_eq!(machine.next_resident(Mfn(11)), None);
    assert_eq!(machine.pack(11..14), 0, "they are packed");
    assert_eq!(machine.pack(64..70), 0, "there are no such frames");
    for mfn in [13, 8, 9, 10] {
        for at in 0..512 {
            assert_eq!(machine.entry(Mfn(mfn), at).unwrap(), word(mfn, at));
        }
    }
    assert_eq!((machine.folded(), machine.pack(8..10)), (vec![Mfn(11), Mfn(12)], 2));
    machine.discard(Mfn(8), 5).unwrap();
    assert_eq!(machine.folded().len(), 0);
    assert!((8..13).all(|mfn| machine.entry(Mfn(mfn), 3).unwrap() == 0), "who frees a frame gets zeros");
}

#[test]
fn test_packed_frames_that_hold_the_same_are_written_apart() {
    let machine = Machine::new(8).unwrap();
    for mfn in 0..6 {
        machine.write(Mfn(mfn), 64, &[1 + (mfn / 4) as u8; 100]).unwrap();
    }
    for round in 0..3 {
        machine.pack(0..6);
        assert_eq!(machine.folded().len(), 6);
        machine.write(Mfn(round), 80, b"another").unwrap();
        machine.discard(Mfn(5), 1).unwrap();
        machine.write(Mfn(5), 64, &[2; 100]).unwrap();
    }
    for mfn in 0..6 {
        let mut bytes = [0; 100];
        machine.read(Mfn(mfn), 64, &mut bytes).unwrap();
        assert_eq!(&bytes[..16], &[1 + (mfn / 4) as u8; 16]);
        assert_eq!(&bytes[16..23] == b"another", mfn < 3, "{mfn}");
    }
}

#[test]
fn test_exposed_frames_are_in_the_memfd() {
    let machine = Machine::new(64).unwrap();
    machine.fill(Mfn(3), 0, 4096, 0xcc).unwrap();
    assert!(machine.fold(3..4, 0xcc));
    machine.expose(Mfn(3)).unwrap();
    assert_eq!(machine.next_resident(Mfn(0)), Some(3..4));
    assert!(!machine.fold(3..4, 0xcc));
    machine.zero(Mfn(3)).unwrap();
    assert!(machine.fold(3..4, 0), "zeros are zeros in the memfd, too");
    machine.fill(Mfn(3), 0, 4096, 0xcc).unwrap();
    assert!(!machine.fold(3..4, 0xcc), "it is still exposed");
    machine.discard(Mfn(3), 1).unwrap();
    machine.fill(Mfn(3), 0, 4096, 0xcc).unwrap();
    assert!(machine.fold(3..4, 0xcc));
}

#[test]
fn test_threads_that_unfold_a_frame_lose_no_store() {
    let machine = Machine::new(64).unwrap();
    for _ in 0..500 {
        machine.fill(Mfn(1), 0, 4096, 0xcc).unwrap();
        assert!(machine.fold(1..2, 0xcc));
        std::thread::scope(|threads| {
            for (at, byte) in [(0, 0), (8, 1)] {
                let machine = &machine;
                threads.spawn(move || machine.write(Mfn(1), at, &[byte; 8]).unwrap());
            }
        });
        let words = [0, 8, 16].map(|at| machine.word64(Mfn(1), at).unwrap().load(Ordering::Relaxed));
        assert_eq!(words, [0, 0x0101_0101_0101_0101, 0xcccc_cccc_cccc_cccc]);
    }
}
