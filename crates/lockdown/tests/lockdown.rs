//! A process behind the walls: what fails, and what goes on. One test only, because there is no way back.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

fn is_refused<T>(result: std::io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

fn assert_walls() {
    assert!(is_refused(File::open("/dev/null")), "open");
    assert!(is_refused(File::create("/tmp/ring3-lockdown-test")), "create");
    assert!(is_refused(std::fs::read_dir("/")), "read a directory");
    assert!(is_refused(std::fs::remove_file("/tmp/ring3-lockdown-test")), "unlink");
    assert!(is_refused(std::fs::rename("/tmp/a", "/tmp/b")), "rename");
    assert!(is_refused(Command::new("/bin/true").status()), "fork and exec");
    assert!(is_refused(TcpStream::connect("127.0.0.1:9")), "TCP");
    assert!(is_refused(TcpListener::bind("127.0.0.1:0")), "TCP, listening");
    assert!(is_refused(UdpSocket::bind("127.0.0.1:0")), "UDP");
    assert!(is_refused(UnixStream::connect("/tmp/ring3-lockdown-test")), "Unix socket");
}

#[test]
fn test_files_programs_and_sockets_are_out_of_reach_but_threads_and_open_sockets_work() {
    let directory = std::env::temp_dir().join(format!("ring3-lockdown-{}", std::process::id()));
    let listener = UnixListener::bind(&directory).unwrap();
    let client = UnixStream::connect(&directory).unwrap();
    std::fs::remove_file(&directory).unwrap();
    let (to_old_thread, requests) = mpsc::channel::<()>();
    let old_thread = thread::spawn(move || {
        requests.recv().unwrap();
        assert_walls();
    });

    ring3_lockdown::forbid_files().unwrap();
    ring3_lockdown::forbid_syscalls().unwrap();

    assert_walls();
    to_old_thread.send(()).unwrap();
    old_thread.join().expect("a thread from before the lock-down is behind the walls, too");
    thread::spawn(assert_walls).join().expect("a new thread starts, and is behind the walls");

    let (mut served, _) = listener.accept().expect("a connection to a socket that listened before");
    served.write_all(b"hello").unwrap();
    let mut read = [0; 5];
    (&client).read_exact(&mut read).unwrap();
    assert_eq!(&read, b"hello");
    thread::sleep(Duration::from_millis(1));
    let large = vec![1u8; 64 << 20];
    assert_eq!(large.iter().map(|&byte| u64::from(byte)).sum::<u64>(), 64 << 20);
    drop(large);
}
