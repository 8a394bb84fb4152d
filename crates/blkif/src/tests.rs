use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::bell::{Bell, Notice};
use super::events::{Events, Woken};
use super::idle::{Burst, GAP, Patience, SOON};
use super::ring::{Disk, End, Ring, Served, Wait};
use super::shared_unsafe::test_fds::{epoll, eventfd, signal, watch};
use super::{Layout, Shared};

const DISK: Disk = Disk { nr_sectors: 64, may_write: true, nr_indirect_max: 256, may_look: true };

/// Grant, first and last sector.
type Segment = (u32, u8, u8);

/// A front end: machine, ring page, journal, and a file of 64 sectors, sector n of bytes n.
struct Front {
    views: [Shared; 3],
    ring: Ring,
    file: File,
    told: UnixDatagram,
    layout: Layout,
}

impl Front {
    fn new(layout: Layout) -> Self {
        let [machine, page, journal] = [16 * 512, 512, 1024].map(Shared::leaked);
        let views = [machine.1, page.1, journal.1];
        let path = std::env::temp_dir().join(format!("blkif-{}-{:?}", std::process::id(), std::thread::current().id()));
        let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        (0..64u8).for_each(|sector| file.write_all(&[sector; 512]).unwrap());
        let (told, socket) = UnixDatagram::pair().unwrap();
        told.set_nonblocking(true).unwrap();
        let notice = Notice {
            socket: OwnedFd::from(socket),
            packet: b"event".to_vec(),
            lazy_packet: b"lazy".to_vec(),
            bell: None,
        };
        let image = OwnedFd::from(file.try_clone().unwrap());
        let ring = Ring::new([machine.0, page.0, journal.0], layout, image, Some(notice), Duration::ZERO).unwrap();
        let front = Self { views, ring, file, told, layout };
        front.set_word(3, 1);
        front
    }

    fn view(&self, area: usize) -> &Shared {
        &self.views[area]
    }

    fn word(&self, index: usize) -> u32 {
        self.view(1).word32(index * 4).unwrap().load(Ordering::SeqCst)
    }

    fn set_word(&self, index: usize, value: u32) {
        self.view(1).word32(index * 4).unwrap().store(value, Ordering::SeqCst);
    }

    fn ask_raw(&self, raw: &[u8]) {
        let slot = self.word(0) as usize & 31;
        assert!(self.view(1).write(64 + slot * self.layout.slot_bytes(), raw));
        self.set_word(0, self.word(0) + 1);
    }

    fn ask(&self, operation: u8, sector: u64, segments: &[Segment]) {
        let mut raw = vec![operation, u8::try_from(segments.len()).unwrap(), 0, 0];
        raw.resize(if self.layout == Layout::Bits64 { 8 } else { 4 }, 0);
        raw.extend_from_slice(&sector.wrapping_add(1000).to_le_bytes());
        raw.extend_from_slice(&sector.to_le_bytes());
        segments.iter().for_each(|&segment| raw.extend_from_slice(&bytes_of(segment)));
        self.ask_raw(&raw);
    }

    fn machine(&self, address: usize, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        assert!(self.view(0).read(address, &mut out));
        out
    }

    fn is_told(&self) -> bool {
        self.packet().is_some()
    }

    /// What it is told by next.
    fn packet(&self) -> Option<Vec<u8>> {
        let mut packet = [0; 16];
        self.told.recv(&mut packet).ok().map(|len| packet[..len].to_vec())
    }

    fn serve(&mut self) -> Served {
        self.ring.serve(self.word(2), DISK, None)
    }

    /// (id, operation, status) of a response.
    fn response(&self, slot: usize) -> (u64, u8, i16) {
        let mut raw = [0; 12];
        assert!(self.view(1).read(64 + slot * self.layout.slot_bytes(), &mut raw));
        (u64::from_le_bytes(raw[..8].try_into().unwrap()), raw[8], i16::from_le_bytes([raw[10], raw[11]]))
    }
}

fn bytes_of((gref, first, last): Segment) -> [u8; 8] {
    let gref = gref.to_le_bytes();
    [gref[0], gref[1], gref[2], gref[3], first, last, 0, 0]
}

#[test]
fn reads_and_writes_are_served_in_both_layouts() {
    for layout in [Layout::Bits64, Layout::Bits32] {
        let mut front = Front::new(layout);
        front.ring.hold(7, 0x2000);
        front.ring.hold(9, 0x3000);
        front.view(0).write(0x3000, &[0xee; 4096]);
        front.ask(0, 3, &[(7, 2, 2), (7, 0, 0)]);
        front.ask(1, 8, &[(9, 0, 7)]);
        let served = front.serve();
        assert_eq!((served.index, served.wants_event, served.end), (2, false, End::Empty));
        assert!(front.is_told());
        assert_eq!(front.machine(0x2000, 512), [4; 512]);
        assert_eq!(front.machine(0x2400, 512), [3; 512]);
        assert_eq!((front.response(0), front.response(1)), ((1003, 0, 0), (1008, 1, 0)));
        let mut all = Vec::new();
        front.file.rewind().unwrap();
        front.file.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 64 * 512, "{layout:?}");
        assert!(all[8 * 512..16 * 512].iter().all(|&byte| byte == 0xee));
        assert_eq!((all[7 * 512], all[16 * 512]), (7, 16));
        assert_eq!((front.word(1), front.word(2)), (3, 2), "the next request raises an event");
    }
}

#[test]
fn indirect_segments_come_from_their_page() {
    let mut front = Front::new(Layout::Bits64);
    front.ring.hold(1, 0x1000);
    front.ring.hold(2, 0x4000);
    front.view(0).write(0x1000, &[bytes_of((2, 0, 3)), bytes_of((2, 4, 7))].concat());
    let mut raw = vec![6, 0, 2, 0, 0, 0, 0, 0];
    raw.extend_from_slice(&5u64.to_le_bytes());
    raw.extend_from_slice(&16u64.to_le_bytes());
    raw.extend_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0]);
    front.ask_raw(&raw);
    assert_eq!(front.serve().end, End::Empty);
    assert_eq!((front.machine(0x4000, 1), front.machine(0x4e00, 1)), (vec![16], vec![23]));
    assert_eq!(front.response(0), (5, 0, 0));
}

#[test]
fn what_is_not_for_here_stays_in_the_ring() {
    let refused: [(u8, u64, &[Segment]); 8] = [
        (3, 0, &[]),           // flush
        (2, 0, &[(7, 0, 7)]),  // barrier
        (0, 0, &[(8, 0, 7)]),  // not held
        (0, 0, &[]),           // no segments
        (0, 57, &[(7, 0, 7)]), // beyond the end
        (0, u64::MAX, &[(7, 0, 7)]),
        (0, 0, &[(7, 5, 4)]),
        (0, 0, &[(7, 0, 8)]),
    ];
    for (operation, sector, segments) in refused {
        let mut front = Front::new(Layout::Bits64);
        front.ring.hold(7, 0x2000);
        front.ask(0, 1, &[(7, 0, 0)]);
        front.ask(operation, sector, segments);
        let served = front.serve();
        assert_eq!((served.index, served.end, front.word(2)), (1, End::Other, 1), "{operation} {sector}");
        assert!(front.is_told(), "of the answer before it");
        let journal = front.view(2);
        assert_eq!(journal.word32(32).unwrap().load(Ordering::SeqCst), 1);
    }
}

#[test]
fn request_that_failed_is_taken_and_not_answered() {
    let mut front = Front::new(Layout::Bits64);
    front.ring.hold(7, 0x2000);
    front.file.set_len(512 * 60).unwrap();
    front.ask(0, 56, &[(7, 0, 7)]);
    let served = front.serve();
    assert_eq!((served.index, served.end, front.word(2)), (0, End::Other, 0));
    let mut journaled = [0; 24];
    assert!(front.view(2).read(64, &mut journaled));
    assert_eq!((journaled[16], front.view(2).word32(32).unwrap().load(Ordering::SeqCst)), (56, 1));
}

#[test]
fn wild_index_and_grant_outside_the_machine_are_refused() {
    let mut front = Front::new(Layout::Bits64);
    front.set_word(0, 1000);
    assert_eq!(front.serve().end, End::Other);
    let mut front = Front::new(Layout::Bits64);
    front.ring.hold(7, u64::MAX - 100);
    front.ring.hold(8, 1 << 40);
    front.ask(0, 0, &[(8, 0, 7)]);
    assert_eq!((front.serve().end, front.word(2)), (End::Other, 0));
    front.set_word(0, 0);
    front.ask(0, 0, &[(7, 0, 7)]);
    assert_eq!((front.serve().end, front.word(2)), (End::Other, 0));
}

#[test]
fn others_get_their_turn() {
    let mut front = Front::new(Layout::Bits64);
    front.ring.hold(7, 0x2000);
    let write_denied = Disk { may_write: false, ..DISK };
    front.ask(1, 0, &[(7, 0, 7)]);
    assert_eq!(front.ring.serve(0, write_denied, None).end, End::Other);
    assert_eq!(front.word(2), 0);
    assert_eq!(front.serve().end, End::Empty);
}

fn events(port: u32) -> (Events, Shared, OwnedFd) {
    let (shared_info, view) = Shared::leaked(512);
    let (upcall, set) = (eventfd(), epoll());
    watch(set.as_fd(), upcall.as_fd(), 7);
    (Events { shared_info, upcall, upcall_name: 7, port }, view, set)
}

fn raise(events: &Events, view: &Shared, port: u32) {
    let (word, bit) = ((port / 64) as usize, 1 << (port % 64));
    view.word64(0x800 + word * 8).unwrap().fetch_or(bit, Ordering::SeqCst);
    view.word64(8).unwrap().fetch_or(1 << word, Ordering::SeqCst);
    if view.byte(0).unwrap().swap(1, Ordering::SeqCst) == 0 {
        signal(events.upcall.as_fd());
    }
}

#[test]
fn only_the_rings_own_event_is_kept_from_others() {
    let (events, view, set) = events(70);
    assert_eq!(events.wait(set.as_fd(), 0), Woken::Nothing, "the time is over");
    raise(&events, &view, 70);
    assert_eq!(events.wait(set.as_fd(), 1000), Woken::Ring);
    assert_eq!(events.wait(set.as_fd(), 0), Woken::Nothing, "it was taken");
    raise(&events, &view, 70);
    raise(&events, &view, 3);
    assert_eq!(events.wait(set.as_fd(), 1000), Woken::Others(vec![3, 70]));
    view.word64(0xa00).unwrap().store(1 << 4, Ordering::SeqCst);
    raise(&events, &view, 4);
    assert_eq!(events.wait(set.as_fd(), 1000), Woken::Others(vec![]), "masked");
    assert_eq!(view.word64(0x800).unwrap().load(Ordering::SeqCst), 1 << 4);
    let other = eventfd();
    watch(set.as_fd(), other.as_fd(), 8);
    raise(&events, &view, 70);
    signal(other.as_fd());
    assert_eq!(events.wait(set.as_fd(), 1000), Woken::Others(vec![]));
    assert_eq!(view.byte(0).unwrap().load(Ordering::SeqCst), 1, "left for who looks at both");
}

#[test]
fn waits_for_requests_until_the_time_is_over() {
    let mut front = Front::new(Layout::Bits64);
    front.ring.hold(7, 0x2000);
    let (events, view, set) = events(5);
    front.ask(0, 1, &[(7, 0, 0)]);
    raise(&events, &view, 5);
    let started = Instant::now();
    let wait = Wait { events: &events, set: set.as_fd(), time: Duration::from_millis(20) };
    let served = front.ring.serve(0, DISK, Some(wait));
    assert_eq!((served.index, served.end, served.ports), (1, End::Empty, vec![]));
    assert!(started.elapsed() >= Duration::from_millis(20));
    raise(&events, &view, 9);
    let served = front.ring.serve(1, DISK, Some(wait));
    assert_eq!((served.ports, served.end), (vec![9], End::Empty));
    raise(&events, &view, 5);
    raise(&events, &view, 9);
    let served = front.ring.serve(1, DISK, Some(wait));
    assert_eq!(
        (served.ports, served.end),
        (vec![5, 9], End::More),
        "with its own event, the ring is to be looked at again"
    );
}

#[test]
fn looks_no_longer_while_others_wait() {
    let mut front = Front::new(Layout::Bits64);
    let (events, view, _set) = events(5);
    raise(&events, &view, 9);
    let started = Instant::now();
    assert!(!front.ring.look(0, Duration::from_secs(30), Some(&events)));
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn looks_longer_after_short_sleeps_only() {
    let (start, step) = (Instant::now(), Duration::from_micros(5));
    let mut patience = Patience::new(Duration::from_micros(50));
    patience.wake(start);
    assert_eq!(patience.get(), Duration::ZERO);
    for _ in 0..4 {
        patience.sleep(start);
        patience.wake(start + step);
    }
    assert_eq!(patience.get(), Duration::from_micros(50));
    patience.sleep(start);
    patience.wake(start + Duration::from_millis(1));
    assert_eq!(patience.get(), Duration::ZERO);
}

#[test]
fn length_of_bursts_is_learned() {
    let mut burst = Burst::new();
    let mut at = 0u32;
    for _ in 0..20 {
        // A large transfer's eight requests.
        (0..8).for_each(|n| burst.take(at + n, n == 0));
        at += 8;
    }
    burst.take(at, true);
    assert!((1..8).all(|n| burst.may_wait(at + n)));
    assert!(!burst.may_wait(at + 8), "the guest waits now");
    assert!((1..8).all(|n| burst.is_going_on(at + n)) && !burst.is_going_on(at + 8));
    assert!(burst.may_wait(at + 500), "longer ones are worth a try");
    let tries = (0..256).filter(|_| burst.may_wait(at + 8)).count();
    assert_eq!(tries, 4, "now and then it is tried");
    // One at a time.
    (1..20).for_each(|n| burst.take(at + n, true));
    assert!(!burst.may_wait(at + 20));
}

/// A front end whose event has a bell, and the bell's page.
fn front_with_bell() -> (Front, Shared) {
    let (page, view) = Shared::leaked(512);
    let mut front = Front::new(Layout::Bits64);
    front.ring.set_bell(Bell::new(page, 0, 70));
    front.ring.hold(7, 0x2000);
    (front, view)
}

fn set(page: &Shared, at: usize, value: u64) {
    page.word64(at).unwrap().store(value, Ordering::SeqCst);
}

fn is_rung(page: &Shared) -> bool {
    page.word64(0x208).unwrap().load(Ordering::SeqCst) == 1 << 6
}

#[test]
fn bell_is_enough_where_somebody_looks() {
    let (mut front, page) = front_with_bell();
    set(&page, 0, 1); // a worker without work
    front.ask(0, 1, &[(7, 0, 0)]);
    assert_eq!(front.serve().end, End::Empty);
    assert!(is_rung(&page) && page.word64(0x40).unwrap().load(Ordering::SeqCst) == 2);
    assert_eq!(front.packet(), None);
}

#[test]
fn event_waits_for_a_busy_vcpu_and_not_for_long() {
    let (mut front, page) = front_with_bell();
    set(&page, 0x408, 1 << 6); // busy
    let started = Instant::now();
    front.ask(0, 1, &[(7, 0, 0)]);
    assert_eq!(front.serve().end, End::Empty);
    assert!(started.elapsed() >= GAP, "a burst may have begun");
    assert_eq!((front.packet(), front.packet()), (Some(b"event".to_vec()), None));
    assert!(!is_rung(&page), "taken back");
    // Bursts turn out to be of one: the event waits for a while only.
    for _ in 0..4 {
        front.set_word(3, front.word(2) + 1);
        front.ask(0, 1, &[(7, 0, 0)]);
        front.serve();
    }
    while front.is_told() {}
    front.set_word(3, front.word(2) + 1);
    front.ask(0, 1, &[(7, 0, 0)]);
    let started = Instant::now();
    front.serve();
    assert!(started.elapsed() >= SOON);
    assert_eq!((front.packet(), front.packet()), (Some(b"event".to_vec()), None));
}

#[test]
fn event_does_not_wait_where_nobody_looks_after_it() {
    let (mut front, page) = front_with_bell();
    set(&page, 0x408, 1 << 6);
    front.ask(0, 1, &[(7, 0, 0)]);
    front.ask(3, 0, &[]); // a flush, which is not for here
    assert_eq!(front.serve().end, End::Other);
    assert_eq!((front.packet(), front.packet()), (Some(b"event".to_vec()), None));
    let (mut front, page) = front_with_bell();
    set(&page, 0x408, 1 << 6);
    front.ask(0, 1, &[(7, 0, 0)]);
    assert_eq!(front.ring.serve(0, Disk { may_look: false, ..DISK }, None).end, End::Empty);
    assert_eq!((front.packet(), front.packet()), (Some(b"event".to_vec()), None));
}

#[test]
fn bell_that_nobody_hears_takes_a_packet() {
    let (mut front, page) = front_with_bell();
    front.ask(0, 1, &[(7, 0, 0)]);
    assert_eq!(front.serve().end, End::Empty);
    assert_eq!(front.packet(), Some(b"lazy".to_vec()));
    assert_eq!(front.packet(), Some(b"event".to_vec()), "the bell was not answered");
    assert!(!is_rung(&page));
}
