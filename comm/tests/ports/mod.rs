//! Ports for processes that meet at an address which they are told.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

/// Below those that Linux gives to outgoing connections (32768 and up). One of these may be in use by the time that a
/// server wants it, and a client that tries it before the server is there may even be connected to itself.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A port that is free, and the next one too. No two calls of this process give the same.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let places = PORTS.len() as u32 / 2;
    // Test programs that run at the same time begin at different places.
    let begin = std::process::id().wrapping_mul(7919) % places;
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut ports = std::iter::repeat_with(|| {
        let place = (begin + u32::from(NEXT.fetch_add(1, Relaxed))) % places;
        PORTS.start + 2 * place as u16
    });
    let found = ports
        .by_ref()
        .take(places as usize)
        .find(|port| is_free(port) && is_free(&(port + 1)));
    found.expect("this machine has a free port")
}
