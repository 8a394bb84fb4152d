//! Type references.
//!
//! The first reference of a new type flushes stale translations if there may be any, then validates; until that is
//! done the frame has type count 1 and is not validated, and others who want the same type wait for it. The last
//! reference to a page table drops what the table holds.
//!
//! The `const` parameter `PAGE` is 1 where a general reference goes along with the type reference, else 0.

use std::sync::atomic::Ordering;

use ring3_machine::Mfn;

use super::frame::{Frame, ONE, ONE_TYPE, PINNED, PageType, VALIDATED, Word};
use super::{Domid, Error, FrameTable, Result};

/// Waits a moment for another thread.
fn relax(spins: &mut u32) {
    *spins = spins.wrapping_add(1);
    if spins.is_multiple_of(64) { std::thread::yield_now() } else { std::hint::spin_loop() }
}

impl FrameTable {
    /// Takes a general and a type reference to a frame of `owner`.
    ///
    /// # Errors
    /// [`Error::NotOwned`], [`Error::TypeInUse`], [`Error::TooManyReferences`]; as a page table or descriptor page
    /// also what its validation finds.
    pub fn get_page_and_type(&self, mfn: Mfn, owner: Domid, page_type: PageType) -> Result<()> {
        self.take::<1>(mfn, owner, page_type)
    }

    /// Takes a type reference. The caller holds a general reference, and `owner` is the owner.
    ///
    /// # Errors
    /// As [`FrameTable::get_page_and_type`].
    pub fn get_page_type(&self, mfn: Mfn, owner: Domid, page_type: PageType) -> Result<()> {
        self.take::<0>(mfn, owner, page_type)
    }

    /// Drops a general and a type reference.
    pub fn put_page_and_type(&self, mfn: Mfn, page_type: PageType) {
        self.drop_type::<1>(mfn, page_type);
    }

    /// Drops a type reference; the caller keeps its general one.
    pub fn put_page_type(&self, mfn: Mfn, page_type: PageType) {
        self.drop_type::<0>(mfn, page_type);
    }

    fn take<const PAGE: u64>(&self, mfn: Mfn, owner: Domid, page_type: PageType) -> Result<()> {
        let frame = self.frame(mfn)?;
        let step = ONE_TYPE + PAGE * ONE;
        let mut spins = 0;
        let mut x = frame.word.load(Ordering::Acquire);
        loop {
            let word = Word(x);
            if word.count() == 0 || Self::owner_of(frame) != Some(owner) {
                return Err(Error::NotOwned(mfn));
            }
            if word.is_full() {
                return Err(Error::TooManyReferences(mfn));
            }
            if word.type_count() != 0 {
                if word.page_type() != page_type {
                    return Err(Error::TypeInUse(mfn));
                }
                if !word.has(VALIDATED) {
                    relax(&mut spins);
                    x = frame.word.load(Ordering::Acquire);
                    continue;
                }
            }
            let is_first = word.type_count() == 0;
            // Writable again: nothing to check, nothing to flush.
            let is_plain = is_first && page_type == PageType::Writable && word.page_type() == page_type;
            let next = match (is_first, is_plain) {
                (false, _) => x + step,
                (true, true) => (x + step) | VALIDATED,
                (true, false) => word.retyped(page_type).0 + step,
            };
            match frame.word.compare_exchange_weak(x, next, Ordering::SeqCst, Ordering::Acquire) {
                Ok(_) if is_first && !is_plain => {
                    return self.complete_type::<PAGE>(mfn, frame, owner, word, page_type);
                }
                Ok(_) => break,
                Err(now) => x = now,
            }
        }
        if PAGE == 1 && Self::owner_of(frame) != Some(owner) {
            self.drop_type::<PAGE>(mfn, page_type);
            return Err(Error::NotOwned(mfn));
        }
        Ok(())
    }

    /// The type was set by us, count 1, not validated; `old` is the word before.
    fn complete_type<const PAGE: u64>(
        &self,
        mfn: Mfn,
        frame: &Frame,
        owner: Domid,
        old: Word,
        page_type: PageType,
    ) -> Result<()> {
        let checked = if Self::owner_of(frame) == Some(owner) {
            if old.page_type() != page_type {
                self.flush_before_retype(mfn, frame, old, owner);
            }
            self.validate(mfn, owner, page_type)
        } else {
            Err(Error::NotOwned(mfn))
        };
        if checked.is_ok() {
            frame.word.fetch_or(VALIDATED, Ordering::SeqCst);
            return Ok(());
        }
        // A failed attempt may have let the engine walk the table through a stale upper level: keep the stamp valid.
        self.stamp(frame);
        self.finish_drop::<PAGE>(mfn, frame);
        checked
    }

    fn drop_type<const PAGE: u64>(&self, mfn: Mfn, page_type: PageType) {
        let Ok(frame) = self.frame(mfn) else { return };
        let step = ONE_TYPE + PAGE * ONE;
        let mut x = frame.word.load(Ordering::Acquire);
        loop {
            let word = Word(x);
            if word.type_count() == 0 || word.page_type() != page_type || word.count() < PAGE {
                debug_assert!(false, "{mfn:?} has no reference as {page_type:?}: {word:x?}");
                return;
            }
            let is_last = word.type_count() == 1;
            if page_type != PageType::SegDesc || is_last {
                // Before the count drops, so that whoever sees it zero sees the stamp.
                self.stamp(frame);
            }
            // A page table stays typed, but unusable, while what it holds is dropped.
            let is_table = is_last && page_type.level().is_some();
            let next = match (is_last, is_table) {
                (false, _) => x - step,
                (true, true) => x & !VALIDATED,
                (true, false) => (x - step) & !VALIDATED,
            };
            match frame.word.compare_exchange_weak(x, next, Ordering::SeqCst, Ordering::Acquire) {
                Ok(_) if is_table => {
                    self.invalidate(mfn, page_type);
                    self.stamp(frame);
                    self.finish_drop::<PAGE>(mfn, frame);
                    return;
                }
                Ok(_) => {
                    if PAGE == 1 && Word(next).count() == 0 {
                        self.free_frame(mfn, frame);
                    }
                    return;
                }
                Err(now) => x = now,
            }
        }
    }

    /// Drops the last type reference of a frame that is not validated.
    fn finish_drop<const PAGE: u64>(&self, mfn: Mfn, frame: &Frame) {
        let before = frame.word.fetch_sub(ONE_TYPE + PAGE * ONE, Ordering::SeqCst);
        if PAGE == 1 && Word(before).count() == 1 {
            self.free_frame(mfn, frame);
        }
    }

    /// Takes a general and a type reference to a frame of `owner` that is in use as that already.
    pub(super) fn take_validated(&self, mfn: Mfn, owner: Domid, page_type: PageType) -> bool {
        let Ok(frame) = self.frame(mfn) else { return false };
        let mut x = frame.word.load(Ordering::Acquire);
        loop {
            let word = Word(x);
            let is_so =
                word.type_count() != 0 && word.page_type() == page_type && word.has(VALIDATED) && !word.is_full();
            if !is_so || word.count() == 0 || Self::owner_of(frame) != Some(owner) {
                return false;
            }
            match frame.word.compare_exchange_weak(x, x + ONE_TYPE + ONE, Ordering::SeqCst, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => x = now,
            }
        }
        if Self::owner_of(frame) != Some(owner) {
            self.drop_type::<1>(mfn, page_type);
            return false;
        }
        true
    }

    /// Takes a general and a type reference to a frame of `owner` as whatever it is used as now, or as writable if
    /// it is in no use. So the type cannot change while the caller stores to the frame.
    pub(super) fn hold(&self, mfn: Mfn, owner: Domid) -> Result<PageType> {
        loop {
            let word = Word(self.frame(mfn)?.word.load(Ordering::Acquire));
            let page_type = if word.type_count() == 0 { PageType::Writable } else { word.page_type() };
            match self.take::<1>(mfn, owner, page_type) {
                Ok(()) => return Ok(page_type),
                // Changed since we looked, and only then: nothing else refuses the present type so.
                Err(Error::TypeInUse(at)) if at == mfn => std::hint::spin_loop(),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sets the pinned flag; `false` if it was set.
    pub(super) fn set_pinned(&self, mfn: Mfn) -> bool {
        self.frame(mfn).is_ok_and(|frame| frame.word.fetch_or(PINNED, Ordering::SeqCst) & PINNED == 0)
    }

    /// Clears the pinned flag; returns the type if it was set. The caller drops the pin's references.
    pub(super) fn clear_pinned(&self, mfn: Mfn) -> Option<PageType> {
        let word = Word(self.frame(mfn).ok()?.word.fetch_and(!PINNED, Ordering::SeqCst));
        word.has(PINNED).then(|| word.page_type())
    }
}
