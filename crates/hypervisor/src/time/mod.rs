//! Time: the system clock, timers, and what guests read of it.

mod clock;
mod guest_tsc;
mod pit;
mod pvclock;
mod timers;
mod tsc_unsafe;

pub use clock::Clock;
pub use guest_tsc::{GuestTsc, TscInfo};
pub use pit::Pit;
pub use pvclock::{time_info, write_time_info, write_wall_clock};
pub use timers::{Due, NR_TIMER_KINDS, TimerKind, Timers};
pub use tsc_unsafe::{host_cpuid, rdtsc, set_timer_slack};
