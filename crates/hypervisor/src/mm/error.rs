//! What the memory manager refuses, and the guest-visible number of each refusal.

use ring3_abi::errno;
use ring3_machine::Mfn;

/// A refused operation. Nothing was changed unless the operation says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No such frame, a free one, or one of another domain.
    #[error("frame {0:?} is not the domain's")]
    NotOwned(Mfn),
    /// The frame has another type, and references to it as that.
    #[error("frame {0:?} is in use as another type")]
    TypeInUse(Mfn),
    /// A reference count is exhausted.
    #[error("frame {0:?} has too many references")]
    TooManyReferences(Mfn),
    /// The entry has bits that a paravirtualized guest may not set.
    #[error("page-table entry {0:#x} has forbidden bits")]
    ForbiddenBits(u64),
    /// An L1 entry maps a frame that the domain may not map, or not so.
    #[error("entry may not map frame {0:?}")]
    MappingRefused(Mfn),
    /// An L1 entry maps something that is not memory of this machine.
    #[error("frame {0:?} is outside machine memory")]
    NotMemory(Mfn),
    /// An argument out of the ABI's range.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// The operation is for another caller.
    #[error("not permitted: {0}")]
    NotPermitted(&'static str),
    /// Somebody else changed the entry meanwhile; trying again is right.
    #[error("the entry changed meanwhile")]
    Raced,
    /// The machine or the domain's reservation is exhausted.
    #[error("no memory: {0}")]
    NoMemory(&'static str),
    /// No such domain is registered.
    #[error("no such domain: {0}")]
    NoSuchDomain(u16),
    /// The domain is registered already.
    #[error("domain {0} exists")]
    DomainExists(u16),
    /// A sub-command that Xen does not have.
    #[error("no such command: {0}")]
    NoSuchCommand(u64),
}

impl Error {
    /// The (negative) number that a hypercall returns.
    pub const fn errno(self) -> i64 {
        match self {
            Self::NotOwned(_) | Self::TypeInUse(_) | Self::ForbiddenBits(_) | Self::Invalid(_) => -errno::EINVAL,
            Self::TooManyReferences(_) => -errno::EINVAL,
            Self::MappingRefused(_) => -errno::EBUSY,
            Self::NotMemory(_) | Self::NotPermitted(_) => -errno::EPERM,
            Self::Raced => -errno::EAGAIN,
            Self::NoMemory(_) => -errno::ENOMEM,
            Self::NoSuchDomain(_) => -errno::ESRCH,
            Self::DomainExists(_) => -errno::EEXIST,
            Self::NoSuchCommand(_) => -errno::ENOSYS,
        }
    }
}
