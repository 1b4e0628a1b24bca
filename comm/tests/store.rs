//! Stores: what every one of them does, in one table of makers; and what a server over TCP has to stand.

mod child;
#[path = "store/clients.rs"]
mod clients;
#[path = "store/tcp.rs"]
mod tcp;

use phalanx_comm::{
    Error, MOST_KEY_BYTES, MOST_VALUE_BYTES, MemoryStore, PrefixStore, Reply, Request, Store,
    StoreServer, TcpConfig, TcpStore, Until,
};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Handles of ranks on one store.
struct Made {
    name: &'static str,
    handle: Box<dyn Fn(usize, Duration) -> Arc<dyn Store>>,
    /// Serves it, where it is served.
    _server: Option<Arc<StoreServer>>,
}

fn client(server: &StoreServer, rank: usize, deadline: Duration) -> TcpStore {
    let config = TcpConfig::new("job").rank(rank).deadline(deadline);
    TcpStore::connect(
        &server.address().to_string(),
        config.start_deadline(PATIENCE),
    )
    .unwrap()
}

/// One of each maker.
fn all() -> Vec<Made> {
    let memory = || MemoryStore::new(PATIENCE);
    let serve = || Arc::new(StoreServer::bind("127.0.0.1:0", "job").unwrap());
    let (one, two, three) = (serve(), serve(), serve());
    let (first, second, third) = (Arc::clone(&one), Arc::clone(&two), Arc::clone(&three));
    let (plain, whole) = (memory(), memory());
    // A handle's deadline is its own; the keys are the same.
    let over =
        |store: &MemoryStore, rank, deadline| store.clone().for_rank(rank).with_deadline(deadline);
    vec![
        Made {
            name: "memory",
            handle: Box::new(move |rank, deadline| Arc::new(over(&plain, rank, deadline))),
            _server: None,
        },
        Made {
            name: "tcp",
            handle: Box::new(move |rank, deadline| Arc::new(client(&one, rank, deadline))),
            _server: Some(first),
        },
        Made {
            name: "the server's own and tcp",
            handle: Box::new(move |rank, deadline| match rank {
                0 => Arc::new(two.store(deadline).for_rank(0)),
                _ => Arc::new(client(&two, rank, deadline)),
            }),
            _server: Some(second),
        },
        Made {
            name: "a prefix of memory",
            handle: Box::new(move |rank, deadline| {
                let whole = Arc::new(over(&whole, rank, deadline));
                whole.set("key", b"another's").unwrap();
                Arc::new(PrefixStore::new("part", whole))
            }),
            _server: None,
        },
        Made {
            name: "a prefix of a prefix of tcp",
            handle: Box::new(move |rank, deadline| {
                let whole = Arc::new(client(&three, rank, deadline));
                let part = Arc::new(PrefixStore::new("part", whole));
                Arc::new(PrefixStore::new("0", part))
            }),
            _server: Some(third),
        },
    ]
}

/// Runs a case on a new store of every maker.
fn on_every_store(case: impl Fn(&dyn Fn(usize, Duration) -> Arc<dyn Store>)) {
    for made in all() {
        println!("on {}", made.name);
        case(&*made.handle);
    }
}

#[test]
fn a_value_is_what_was_set_last() {
    on_every_store(|handle| {
        let (a, b) = (handle(0, PATIENCE), handle(1, PATIENCE));
        assert_eq!(a.find("key").unwrap(), None);
        a.set("key", b"1").unwrap();
        assert_eq!(b.get("key").unwrap(), b"1");
        b.set("key", b"").unwrap();
        assert_eq!(a.get("key").unwrap(), b"");
        assert_eq!(a.find("key").unwrap(), Some(Vec::new()));
        let all: Vec<u8> = (0..=255).collect();
        a.set("", &all).unwrap(); // any text is a key
        assert_eq!(b.get("").unwrap(), all);
        assert!(b.delete("key").unwrap());
        assert!(!a.delete("key").unwrap());
        assert_eq!(a.find("key").unwrap(), None);
        assert_eq!((a.rank(), b.rank()), (Some(0), Some(1)));
    });
}

#[test]
fn get_and_wait_wait_until_all_is_there() {
    on_every_store(|handle| {
        let (a, b, c) = (
            handle(0, PATIENCE),
            handle(1, PATIENCE),
            handle(2, PATIENCE),
        );
        thread::scope(|scope| {
            let get = scope.spawn(|| a.get("x"));
            let wait = scope.spawn(|| b.wait(&["z", "x", "y"]));
            for key in ["x", "y", "z"] {
                thread::sleep(Duration::from_millis(30));
                assert!(!wait.is_finished());
                c.set(key, key.as_bytes()).unwrap();
            }
            assert_eq!(get.join().unwrap().unwrap(), b"x");
            wait.join().unwrap().unwrap();
        });
        a.wait(&[]).unwrap();
        // Two threads of one handle do not wait for each other.
        thread::scope(|scope| {
            let get = scope.spawn(|| a.get("later"));
            thread::sleep(Duration::from_millis(30));
            a.set("later", b"now").unwrap();
            assert_eq!(get.join().unwrap().unwrap(), b"now");
        });
    });
}

#[test]
fn who_waits_too_long_is_told_for_what() {
    on_every_store(|handle| {
        let deadline = Duration::from_millis(350); // longer than a server's look at a waiting client
        let store = handle(3, deadline);
        store.set("here", b"").unwrap();
        for call in ["get", "wait"] {
            let start = Instant::now();
            let error = match call {
                "get" => store.get("there").map(drop),
                _ => store.wait(&["here", "there", "nowhere"]),
            };
            let error = error.unwrap_err();
            let took = start.elapsed();
            assert!(took >= deadline && took < PATIENCE, "{took:?}");
            assert!(!error.is_fatal());
            let text = error.to_string();
            assert!(
                text.starts_with("rank 3 waited 350ms for the key `"),
                "{text}"
            );
            assert!(
                text.contains("there`, and nobody has set it in the store"),
                "{text}"
            );
        }
        // It is as good as before.
        store.set("there", b"").unwrap();
        store.wait(&["here", "there"]).unwrap();
    });
}

#[test]
fn everybody_adds_and_each_sum_is_another() {
    const RANKS: usize = 6;
    const TIMES: usize = 50;
    on_every_store(|handle| {
        let stores: Vec<_> = (0..RANKS).map(|rank| handle(rank, PATIENCE)).collect();
        let mut sums: Vec<i64> = thread::scope(|scope| {
            let each = |store: &Arc<dyn Store>| {
                let store = Arc::clone(store);
                scope.spawn(move || (0..TIMES).map(|_| store.add("n", 1).unwrap()).collect())
            };
            let threads: Vec<_> = stores.iter().map(each).collect();
            let sums: Vec<Vec<i64>> = threads.into_iter().map(|t| t.join().unwrap()).collect();
            sums.concat()
        });
        sums.sort_unstable();
        assert_eq!(sums, (1..=(RANKS * TIMES) as i64).collect::<Vec<_>>());
        let store = &stores[0];
        assert_eq!(store.get("n").unwrap(), b"300");
        assert_eq!(store.add("n", -301).unwrap(), -1);
        store.set("m", b"9223372036854775807").unwrap();
        let error = store.add("m", 1).unwrap_err();
        assert!(matches!(&error, Error::StoreRefused { .. }), "{error}");
        store.set("m", b"no number").unwrap();
        let text = store.add("m", 1).unwrap_err().to_string();
        assert!(text.contains("refuses the add of `"), "{text}");
        assert!(
            text.ends_with("m` by rank 0: its value is no number"),
            "{text}"
        );
        assert_eq!(store.get("m").unwrap(), b"no number");
    });
}

#[test]
fn of_those_who_claim_one_is_first() {
    on_every_store(|handle| {
        let stores: Vec<_> = (0..5).map(|rank| handle(rank, PATIENCE)).collect();
        let together = Barrier::new(stores.len());
        let winners: Vec<Vec<u8>> = thread::scope(|scope| {
            let together = &together;
            let each = |(rank, store): (usize, &Arc<dyn Store>)| {
                let store = Arc::clone(store);
                scope.spawn(move || {
                    together.wait();
                    store.claim("first", rank.to_string().as_bytes()).unwrap()
                })
            };
            let threads: Vec<_> = stores.iter().enumerate().map(each).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let first = stores[0].get("first").unwrap();
        assert!(winners.iter().all(|winner| *winner == first), "{winners:?}");
    });
}

#[test]
fn what_is_too_long_is_refused_with_the_limit() {
    // A prefix takes its part of the key.
    let prefix = "part/0/".len();
    on_every_store(|handle| {
        let store = handle(0, PATIENCE);
        let key = "k".repeat(MOST_KEY_BYTES - prefix);
        let value = vec![7; MOST_VALUE_BYTES];
        store.set(&key, &value).unwrap();
        assert_eq!(store.get(&key).unwrap(), value);
        let long = "k".repeat(MOST_KEY_BYTES + 1);
        let larger = vec![7; MOST_VALUE_BYTES + 1];
        for (error, limit) in [
            (store.set(&long, b"").unwrap_err(), "and the limit is 1024"),
            (store.get(&long).unwrap_err(), "and the limit is 1024"),
            (
                store.set("v", &larger).unwrap_err(),
                "and the limit is 1048576",
            ),
            (
                store.claim("v", &larger).unwrap_err(),
                "and the limit is 1048576",
            ),
        ] {
            assert!(matches!(&error, Error::StoreRefused { .. }), "{error}");
            assert!(error.to_string().ends_with(limit), "{error}");
        }
        assert_eq!(store.find("v").unwrap(), None);
    });
}

#[test]
fn several_requests_are_answered_in_their_order() {
    on_every_store(|handle| {
        let store = handle(0, PATIENCE);
        let key = |i: usize| format!("key {i}");
        // More than any buffer on the way takes, both there and back.
        let value = vec![3; MOST_VALUE_BYTES / 4];
        let set = |i| Request::Set {
            key: key(i),
            value: value.clone(),
        };
        let get = |i| Request::Get {
            key: key(i),
            patience: Duration::ZERO,
        };
        let sets: Vec<Request> = (0..20).map(set).collect();
        assert_eq!(store.ask(&sets).unwrap(), vec![Reply::Done; 20]);
        let mixed: Vec<Request> = (0..20)
            .flat_map(|i| [get(i), set(i), get(i + 20)])
            .collect();
        let replies = store.ask(&mixed).unwrap();
        for replies in replies.chunks(3) {
            let there = Reply::Value(value.clone());
            assert_eq!(replies, [there, Reply::Done, Reply::NotYet(0)]);
        }
        // What stands before the one that is refused has been done, and the store goes on.
        store.set("text", b"a").unwrap();
        let add = |key: &str| Request::Add {
            key: key.into(),
            amount: 5,
        };
        let error = store.ask(&[add("n"), add("text"), get(0)]).unwrap_err();
        assert!(error.to_string().contains("add of `"), "{error}");
        assert!(error.to_string().contains("text` by rank 0"), "{error}");
        assert_eq!(store.get("n").unwrap(), b"5");
        assert_eq!(store.ask(&[]).unwrap(), []);
    });
}

#[test]
fn one_of_several_is_waited_for() {
    on_every_store(|handle| {
        let (store, other) = (handle(0, PATIENCE), handle(1, PATIENCE));
        let until = vec![
            Until::Set("never".into()),
            Until::Above("count".into(), 2),
            Until::Set("fault".into()),
        ];
        let any = |patience| Request::WaitAny {
            until: until.clone(),
            patience,
        };
        let soon = Duration::from_millis(10);
        other.add("count", 2).unwrap();
        assert_eq!(store.ask(&[any(soon)]).unwrap(), [Reply::NotYet(0)]);
        thread::scope(|scope| {
            let wait = scope.spawn(|| store.ask(&[any(PATIENCE)]));
            thread::sleep(Duration::from_millis(30));
            other.set("something else", b"").unwrap();
            other.add("count", 1).unwrap();
            assert_eq!(wait.join().unwrap().unwrap(), [Reply::Index(1)]);
        });
        other.delete("count").unwrap();
        other.set("fault", b"").unwrap();
        assert_eq!(store.ask(&[any(PATIENCE)]).unwrap(), [Reply::Index(2)]);
    });
}
