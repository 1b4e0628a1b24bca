//! A server over TCP, and clients that do it no good.

use super::child::again;
use super::{PATIENCE, client};
use phalanx_comm::{Error, MOST_VALUE_BYTES, Store, StoreLimits, StoreServer, TcpConfig, TcpStore};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

pub(super) fn serve() -> StoreServer {
    StoreServer::bind("127.0.0.1:0", "job").unwrap()
}

fn threads_of_servers() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
    };
    tasks
        .filter_map(name)
        .filter(|name| ["store", "store-client"].contains(&name.trim()))
        .count()
}

/// It says nothing wrong, and is heard by nobody else.
fn is_well(server: &StoreServer) {
    let store = client(server, 0, PATIENCE);
    let n = store.add("well", 1).unwrap();
    assert_eq!(store.get("well").unwrap(), n.to_string().as_bytes());
}

/// In a process of its own, where no other test has threads.
#[test]
fn the_end_of_a_server_leaves_no_thread_behind() {
    if let Some(mut child) = again("tcp::the_end_of_a_server_leaves_no_thread_behind") {
        assert!(child.status().unwrap().success());
        return;
    }
    for _ in 0..20 {
        let server = serve();
        let clients: Vec<TcpStore> = (0..4).map(|r| client(&server, r, PATIENCE)).collect();
        thread::scope(|scope| {
            let waits = scope.spawn(|| clients[0].get("never").unwrap_err());
            let _silent = TcpStream::connect(server.address()).unwrap();
            clients[1].set("a", b"").unwrap();
            while threads_of_servers() < 6 {
                thread::yield_now(); // it listens, and serves five
            }
            drop(server);
            // The system counts a thread for a moment after it was joined.
            let start = Instant::now();
            while threads_of_servers() > 0 {
                assert!(start.elapsed() < PATIENCE, "{}", threads_of_servers());
            }
            waits.join().unwrap();
        });
    }
}

#[test]
fn many_clients_meet() {
    const RANKS: usize = 48;
    let server = serve();
    thread::scope(|scope| {
        let each = |rank| {
            let server = &server;
            scope.spawn(move || {
                let store = client(server, rank, PATIENCE);
                for round in 0..5 {
                    store
                        .set(&format!("{round}/{rank}"), &[rank as u8])
                        .unwrap();
                    let keys: Vec<String> = (0..RANKS).map(|r| format!("{round}/{r}")).collect();
                    store
                        .wait(&keys.iter().map(String::as_str).collect::<Vec<_>>())
                        .unwrap();
                    for (r, key) in keys.iter().enumerate() {
                        assert_eq!(store.get(key).unwrap(), [r as u8]);
                    }
                }
            })
        };
        let threads: Vec<_> = (0..RANKS).map(each).collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
    });
    assert_eq!(server.store(PATIENCE).len(), 5 * RANKS);
}

#[test]
fn garbage_ends_its_own_connection_alone() {
    let server = serve();
    let before = client(&server, 1, PATIENCE);
    let hello = |rank: u64, job: &str| {
        let len = (job.len() as u64).to_le_bytes();
        [
            b"PHXS\x02",
            &rank.to_le_bytes()[..],
            &[0; 8],
            &len,
            job.as_bytes(),
        ]
        .concat()
    };
    let frame = |body: &[u8]| [&(body.len() as u32).to_le_bytes()[..], body].concat();
    let all: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 4096],
        b"PHXS\x01".to_vec(),
        [b"PHXS\x02", &[0xff; 24][..]].concat(),
        [hello(0, "job"), frame(b"")].concat(),
        [hello(0, "job"), frame(&[77; 10])].concat(),
        [
            hello(0, "job"),
            frame(&[[1].as_slice(), &[0xff; 64]].concat()),
        ]
        .concat(),
        [hello(0, "job"), vec![0xff; 8]].concat(),
        hello(0, "another job"),
    ];
    for (i, bytes) in all.iter().enumerate() {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        // What it says, and then its end.
        let mut heard = Vec::new();
        // That it is reset is an end, too.
        let _ = stream.read_to_end(&mut heard);
        assert!(
            heard.is_empty() || heard.starts_with(b"PHXS"),
            "{i}: {heard:?}"
        );
        is_well(&server);
    }
    before.set("still", b"there").unwrap();
}

/// Who says half of something, or reads nothing, holds up nobody; not the end of the server either.
#[test]
fn slow_and_silent_clients_hold_up_nobody() {
    let server = serve();
    let store = client(&server, 0, PATIENCE);
    let connect = || TcpStream::connect(server.address()).unwrap();
    let silent: Vec<TcpStream> = (0..10).map(|_| connect()).collect();
    let mut half = connect();
    half.write_all(b"PHXS\x02").unwrap();
    // It asks for a hundred times a MiB, and takes none.
    store.set("large", &vec![1; MOST_VALUE_BYTES]).unwrap();
    let mut deaf = connect();
    let hello = [b"PHXS\x02", &[0; 16][..], &3u64.to_le_bytes(), b"job"].concat();
    deaf.write_all(&hello).unwrap();
    let get = [&[3][..], &5u64.to_le_bytes(), b"large", &[0; 16]].concat();
    for _ in 0..100 {
        let frame = [&(get.len() as u32).to_le_bytes()[..], &get].concat();
        deaf.write_all(&frame).unwrap();
    }
    // And one stops within a request.
    let mut stops = connect();
    stops.write_all(&hello).unwrap();
    stops.write_all(&[200, 0, 0, 0, 1]).unwrap();
    let start = Instant::now();
    for i in 0..100 {
        store.set("fast", &[i]).unwrap();
    }
    is_well(&server);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    let start = Instant::now();
    drop(server);
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    drop((silent, half, deaf, stops));
}

/// Its end is heard of at once, by who waits and by who does not, and stays.
#[test]
fn the_end_of_a_server_is_told_to_all() {
    let server = serve();
    let address = server.address().to_string();
    let (waits, idles) = (client(&server, 1, PATIENCE), client(&server, 2, PATIENCE));
    let own = server.store(PATIENCE);
    thread::scope(|scope| {
        let waiters = [
            scope.spawn(|| waits.get("never").unwrap_err()),
            scope.spawn(|| waits.wait(&["ever", "never"]).unwrap_err()),
            scope.spawn(|| own.get("never").unwrap_err()),
        ];
        thread::sleep(Duration::from_millis(300));
        let start = Instant::now();
        drop(server);
        for (waiter, call) in waiters
            .into_iter()
            .zip(["get of `never`", "wait of `ever`", ""])
        {
            let error = waiter.join().unwrap();
            assert!(
                start.elapsed() < Duration::from_secs(3),
                "{:?}",
                start.elapsed()
            );
            assert!(matches!(&error, Error::StoreUnreachable { .. }), "{error}");
            assert!(error.is_fatal());
            let text = error.to_string();
            assert!(text.contains(&address) && text.contains(call), "{text}");
            println!("{text}");
        }
    });
    let first = idles.set("a", b"").unwrap_err();
    let text = first.to_string();
    assert!(
        text.starts_with("rank 2 cannot reach the store at 127.0.0.1:"),
        "{text}"
    );
    // Another server at the same address knows nothing of what the first was told.
    let other = StoreServer::bind(&address, "job").unwrap();
    is_well(&other);
    for store in [waits, idles] {
        let again = store.set("a", b"").unwrap_err();
        assert!(matches!(&again, Error::StoreUnreachable { .. }), "{again}");
    }
}

#[test]
fn a_server_that_is_killed_is_told_to_all() {
    let Some(mut child) = again("tcp::a_server_that_is_killed_is_told_to_all") else {
        let server = serve();
        println!("serves {}", server.address());
        loop {
            thread::park();
        }
    };
    let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = lines
        .filter_map(|line| {
            line.unwrap()
                .split_once("serves ")
                .map(|(_, a)| a.to_owned())
        })
        .next()
        .unwrap();
    let store = TcpStore::connect(&address, TcpConfig::new("job").rank(1)).unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| store.get("never").unwrap_err());
        thread::sleep(Duration::from_millis(200));
        child.kill().unwrap();
        let start = Instant::now();
        let text = waiter.join().unwrap().to_string();
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
        let begins =
            format!("rank 1 cannot reach the store at {address}: get of `never` failed after");
        assert!(text.starts_with(&begins), "{text}");
    });
    child.wait().unwrap();
}

#[test]
fn connections_have_a_limit() {
    let mut limits = StoreLimits::default();
    limits.connections = 3;
    let server = StoreServer::with_limits("127.0.0.1:0", "job", limits).unwrap();
    let mut all: Vec<TcpStore> = (0..3).map(|rank| client(&server, rank, PATIENCE)).collect();
    assert_eq!(server.connected(), [0, 1, 2]);
    let config = TcpConfig::new("job")
        .rank(3)
        .start_deadline(Duration::from_millis(300));
    let fourth = || TcpStore::connect(&server.address().to_string(), config.clone());
    let text = fourth().unwrap_err().to_string();
    assert!(
        text.ends_with("it has 3 connections, which is its limit"),
        "{text}"
    );
    all.pop();
    let config = TcpConfig::new("job").rank(3).start_deadline(PATIENCE);
    let fourth = TcpStore::connect(&server.address().to_string(), config).unwrap();
    fourth.set("a", b"").unwrap();
    all[0].get("a").unwrap();
    assert_eq!(server.connected(), [0, 1, 3]);
}

#[test]
fn who_cannot_connect_is_told_why() {
    let soon = Duration::from_millis(300);
    let config = |job: &str| TcpConfig::new(job).rank(1).start_deadline(soon);
    let fails = |address: &str, job: &str, why: &str| {
        let start = Instant::now();
        let text = TcpStore::connect(address, config(job))
            .unwrap_err()
            .to_string();
        assert!(text.contains(why), "{text}");
        let begins = format!("rank 1 cannot reach the store at {address}: connect failed after ");
        assert!(text.starts_with(&begins), "{text}");
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
    };
    let server = serve();
    let address = server.address().to_string();
    fails(
        &address,
        "job/1",
        "it serves the job `job`, and not `job/1`",
    );
    drop(server);
    fails(&address, "job", "onnection refused");
    fails("no such host:1", "job", "no such address");
    fails("127.0.0.1:port", "job", "no such address");
    // Somebody else listens there: he says nothing, or something else.
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    fails(
        &address,
        "job",
        "whoever listens there does not answer as a store does",
    );
    thread::spawn(move || {
        for stream in other.incoming() {
            let _ = stream.and_then(|mut s| s.write_all(b"HTTP/1.1 400 Bad Request\r\n"));
        }
    });
    fails(&address, "job", "it begins with `HTTP/`");
    // And the other way round.
    let bind = |address: &str| StoreServer::bind(address, "job").unwrap_err().to_string();
    let taken = serve();
    let text = bind(&taken.address().to_string());
    assert!(
        text.contains("cannot reach the store at 127.0.0.1:"),
        "{text}"
    );
    assert!(text.contains("in use"), "{text}");
    let text = bind("192.0.2.1:29500"); // an address of documentations, of no host
    assert!(text.contains("192.0.2.1:29500: "), "{text}");
}

/// A client may come first.
#[test]
fn clients_wait_for_their_server() {
    let address = serve().address().to_string(); // free again
    let config = TcpConfig::new("job").start_deadline(PATIENCE);
    thread::scope(|scope| {
        let early = scope.spawn(|| {
            TcpStore::connect(&address, config.clone())
                .unwrap()
                .add("n", 1)
        });
        thread::sleep(Duration::from_millis(200));
        let server = StoreServer::bind(&address, "job").unwrap();
        assert_eq!(early.join().unwrap().unwrap(), 1);
        drop(server);
    });
}
