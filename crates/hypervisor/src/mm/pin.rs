//! Pinning, roots of address spaces, and whole-page operations: the memory half of mmuext_op.

use std::sync::atomic::Ordering;

use ring3_machine::Mfn;

use super::entry::{WAS_KERNEL_ROOT, XEN_SLOTS};
use super::frame::PageType;
use super::{DomainMm, Error, LongWork, Result};

/// Has the references of a frame as `page_type` dropped, if there are any.
fn drop_in(work: &mut LongWork, mfn: Mfn, page_type: Option<PageType>) -> Option<()> {
    page_type.map(|page_type| work.drop_later(mfn, page_type))
}

impl DomainMm {
    /// MMUEXT_PIN_L1_TABLE to MMUEXT_PIN_L4_TABLE, by level 1 to 4: validates the table and all below, and keeps it so.
    ///
    /// # Errors
    /// -EINVAL if the frame is not the domain's, in use as something else, invalid, or pinned already; -EBUSY or
    /// -EPERM for an L1 entry that maps what it may not.
    pub fn pin_table_in(&self, level: u32, mfn: Mfn, work: &mut LongWork) -> Result<()> {
        let page_type = PageType::table(level).ok_or(Error::Invalid("level"))?;
        let frames = self.table();
        frames.get_prepared(work, || frames.get_page_and_type(mfn, self.domid(), page_type))?;
        if !frames.set_pinned(mfn) {
            frames.put_page_and_type(mfn, page_type);
            return Err(Error::Invalid("pinned already"));
        }
        // Domain 0 may pin while the domain dies, after teardown has looked at this frame.
        if self.is_dying() {
            self.drop_pin(mfn);
        }
        Ok(())
    }

    /// MMUEXT_UNPIN_TABLE.
    ///
    /// # Errors
    /// -EINVAL if the frame is not the domain's or not pinned.
    pub fn unpin_table_in(&self, mfn: Mfn, work: &mut LongWork) -> Result<()> {
        self.table().get_page(mfn, self.domid())?;
        let pinned_as = self.table().clear_pinned(mfn);
        self.table().put_page(mfn);
        drop_in(work, mfn, pinned_as).ok_or(Error::Invalid("not pinned"))
    }

    /// Drops the pin of a frame, if there is one.
    pub(super) fn drop_pin(&self, mfn: Mfn) -> bool {
        let pinned_as = self.table().clear_pinned(mfn);
        if let Some(page_type) = pinned_as {
            self.table().put_page_and_type(mfn, page_type);
        }
        pinned_as.is_some()
    }

    /// MMUEXT_NEW_BASEPTR: takes the references of `new` and drops those of `old` (frame 0: none). The caller then
    /// points the vCPU to `new`, before it enters the guest.
    ///
    /// # Errors
    /// -EINVAL and others as [`DomainMm::pin_table`]; the old root stays in force.
    pub fn new_baseptr_in(&self, old: Mfn, new: Mfn, work: &mut LongWork) -> Result<()> {
        if old == new && new.0 != 0 {
            return Ok(());
        }
        self.get_root(new, work)?;
        drop_in(work, old, (old.0 != 0).then_some(PageType::L4));
        Ok(())
    }

    /// MMUEXT_NEW_USER_BASEPTR: as [`DomainMm::new_baseptr`], but frame 0 as `new` is legal and means no user root.
    ///
    /// # Errors
    /// As [`DomainMm::new_baseptr`].
    pub fn new_user_baseptr_in(&self, old: Mfn, new: Mfn, work: &mut LongWork) -> Result<()> {
        if old == new {
            return Ok(());
        }
        if new.0 != 0 {
            self.get_root(new, work)?;
        }
        drop_in(work, old, (old.0 != 0).then_some(PageType::L4));
        Ok(())
    }

    fn get_root(&self, root: Mfn, work: &mut LongWork) -> Result<()> {
        let frames = self.table();
        frames.get_prepared(work, || frames.get_page_and_type(root, self.domid(), PageType::L4))
    }

    /// Makes a root that the caller holds show the machine-to-phys table to user mode, too: it is a kernel's now.
    pub fn show_m2p(&self, root: Mfn) {
        if let Ok(word) = self.machine().word64(root, XEN_SLOTS.start * 8) {
            word.fetch_or(WAS_KERNEL_ROOT, Ordering::AcqRel);
        }
    }

    /// Whether a root shows the machine-to-phys table to user mode.
    pub fn shows_m2p(&self, root: Mfn) -> bool {
        self.machine().entry(root, XEN_SLOTS.start).is_ok_and(|entry| entry & WAS_KERNEL_ROOT != 0)
    }

    /// Drops the references of a root (frame 0: none), at vCPU teardown.
    pub fn put_root(&self, root: Mfn) {
        if root.0 != 0 {
            self.table().put_page_and_type(root, PageType::L4);
        }
    }

    /// Takes references to a frame of the domain that the hypervisor or a guest will write: vcpu_info, runstate areas.
    ///
    /// # Errors
    /// -EINVAL if the frame is not the domain's or is in use as a table.
    pub fn get_writable(&self, mfn: Mfn) -> Result<()> {
        self.table().get_page_and_type(mfn, self.domid(), PageType::Writable)
    }

    /// Drops what [`DomainMm::get_writable`] took.
    pub fn put_writable(&self, mfn: Mfn) {
        self.table().put_page_and_type(mfn, PageType::Writable);
    }

    /// MMUEXT_CLEAR_PAGE.
    ///
    /// # Errors
    /// As [`DomainMm::get_writable`].
    pub fn clear_page(&self, mfn: Mfn) -> Result<()> {
        self.get_writable(mfn)?;
        let done = self.machine().zero(mfn).map_err(|_| Error::NotOwned(mfn));
        self.table().wrote(mfn);
        self.put_writable(mfn);
        done
    }

    /// MMUEXT_COPY_PAGE.
    ///
    /// # Errors
    /// As [`DomainMm::get_writable`] for the target; the source need only be the domain's.
    pub fn copy_page(&self, from: Mfn, to: Mfn) -> Result<()> {
        self.table().get_page(from, self.domid())?;
        let done = self.get_writable(to).and_then(|()| {
            let copied = self.machine().copy_frame(from, to).map_err(|_| Error::NotOwned(to));
            self.table().wrote(to);
            self.put_writable(to);
            copied
        });
        self.table().put_page(from);
        done
    }
}
