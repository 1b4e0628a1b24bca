//! Clients of a server as a whole, which have several connections: what they leave to their end, and what happens where
//! they can have no more of them.

use super::child::again;
use super::tcp::serve;
use super::{PATIENCE, client};
use phalanx_comm::{
    PrefixStore, Reply, Request, Store, StoreLimits, StoreServer, TcpConfig, TcpStore, Until,
};
use std::process::Stdio;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

fn leave_to_end(store: &dyn Store, key: &str, value: Option<&str>) {
    let on_disconnect = Request::OnDisconnect {
        key: key.into(),
        value: value.map(|value| value.as_bytes().to_vec()),
    };
    assert_eq!(store.ask(&[on_disconnect]).unwrap(), [Reply::Done]);
}

/// Calls of several threads take several connections, and a client may say one thing on one and take it back on another.
#[test]
fn what_a_client_leaves_is_of_all_its_connections() {
    let server = serve();
    let own = server.store(PATIENCE);
    let store = client(&server, 1, PATIENCE);
    thread::scope(|scope| {
        leave_to_end(&store, "dead", Some("rank 1"));
        // It waits on the connection over which that was said.
        let waits = scope.spawn(|| store.get("end"));
        thread::sleep(Duration::from_millis(300));
        leave_to_end(&store, "dead", None);
        own.set("end", b"").unwrap();
        waits.join().unwrap().unwrap();
    });
    drop(store);
    while !server.connected().is_empty() {
        thread::yield_now();
    }
    assert_eq!(own.find("dead").unwrap(), None);
    // Nor is it gone as long as one connection lives, and what it has said on any of them is done when it is.
    let store = client(&server, 2, PATIENCE);
    thread::scope(|scope| {
        let waits = scope.spawn(|| store.get("second"));
        thread::sleep(Duration::from_millis(300));
        leave_to_end(&store, "dead", Some("rank 2"));
        own.set("second", b"").unwrap();
        waits.join().unwrap().unwrap();
        assert_eq!(own.find("dead").unwrap(), None);
    });
    drop(store);
    assert_eq!(own.get("dead").unwrap(), b"rank 2");
}

/// Two worlds over one client, each in its part of the store: neither takes the place of the other.
#[test]
fn what_a_client_leaves_is_kept_by_key() {
    let server = serve();
    let own = server.store(PATIENCE);
    let whole = Arc::new(client(&server, 1, PATIENCE));
    let part = |name: &str| PrefixStore::new(name, whole.clone());
    let (one, two, three) = (part("one"), part("two"), part("three"));
    for part in [&one, &two, &three] {
        leave_to_end(part, "dead", Some("rank 1"));
    }
    leave_to_end(&two, "dead", None);
    drop((one, two, three, whole));
    assert_eq!(own.get("one/dead").unwrap(), b"rank 1");
    assert_eq!(own.get("three/dead").unwrap(), b"rank 1");
    assert_eq!(own.find("two/dead").unwrap(), None);
}

#[test]
fn what_a_client_leaves_to_its_end_is_done_then() {
    let server = serve();
    let own = server.store(PATIENCE);
    let leave = |store: &TcpStore, claim: Option<&str>| {
        leave_to_end(store, "dead", claim);
    };
    // One that takes it back, and one that never said it.
    let well = client(&server, 0, PATIENCE);
    leave(&well, Some("rank 0"));
    leave(&well, None);
    drop((well, client(&server, 1, PATIENCE)));
    // One that idles, and one that waits.
    let idles = client(&server, 2, PATIENCE);
    leave(&idles, Some("rank 2"));
    assert_eq!(own.find("dead").unwrap(), None);
    drop(idles);
    assert_eq!(own.get("dead").unwrap(), b"rank 2");
    own.delete("dead").unwrap();
    let Some(mut child) = again("clients::waits_for_its_death") else {
        return;
    };
    let mut child = child
        .env("STORE", server.address().to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    own.get("waits").unwrap();
    thread::sleep(Duration::from_millis(100));
    child.kill().unwrap();
    assert_eq!(own.get("dead").unwrap(), b"rank 3");
    child.wait().unwrap();
}

/// The child of the test above.
#[test]
fn waits_for_its_death() {
    let Ok(address) = std::env::var("STORE") else {
        return;
    };
    let store = TcpStore::connect(&address, TcpConfig::new("job").rank(3)).unwrap();
    leave_to_end(&store, "dead", Some("rank 3"));
    store.set("waits", b"").unwrap();
    let _ = store.get("never");
}

/// That there is no second connection is no loss: the call waits for the first one.
#[test]
fn a_call_without_a_connection_waits_for_one() {
    let mut limits = StoreLimits::default();
    limits.connections = 1;
    let server = StoreServer::with_limits("127.0.0.1:0", "job", limits).unwrap();
    let own = server.store(PATIENCE);
    let store = client(&server, 1, PATIENCE);
    thread::scope(|scope| {
        let waits = scope.spawn(|| store.get("end"));
        thread::sleep(Duration::from_millis(100));
        let second = scope.spawn(|| store.set("second", b""));
        thread::sleep(Duration::from_millis(300));
        assert!(!second.is_finished());
        own.set("end", b"").unwrap();
        waits.join().unwrap().unwrap();
        second.join().unwrap().unwrap();
    });
    // At most for the deadline; then the store is as good as before.
    let server = StoreServer::with_limits("127.0.0.1:0", "job", limits).unwrap();
    let own = server.store(PATIENCE);
    let store = client(&server, 1, Duration::from_millis(400));
    thread::scope(|scope| {
        let until = vec![Until::Set("end".into())];
        let wait = Request::WaitAll {
            until,
            patience: PATIENCE,
        };
        let waits = scope.spawn(|| store.ask(&[wait]).unwrap());
        thread::sleep(Duration::from_millis(100));
        let text = store.set("second", b"").unwrap_err().to_string();
        assert!(
            text.ends_with("it has 1 connections, which is its limit"),
            "{text}"
        );
        own.set("end", b"").unwrap();
        waits.join().unwrap();
    });
    store.set("second", b"").unwrap();
}
