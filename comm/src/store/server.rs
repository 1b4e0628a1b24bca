//! [`StoreServer`]: serves a store to other processes over TCP.

use super::clients::Clients;
use super::frame::{Channel, Lost, WHOLE, frame};
use super::memory::{Memory, MemoryStore};
use super::request::{Answer, Refusal, Reply, Request, read_answer, write_answer};
use crate::error::{Error, Result};
use crate::sync::{Mutex, Shared};
use std::collections::BTreeMap;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How much a store may hold, and how many may use it at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreLimits {
    /// The most keys; 1 Mi by default.
    pub keys: usize,
    /// The most bytes of all keys and values together; 256 MiB by default.
    pub bytes: usize,
    /// The most connections to a server; 8192 by default, which is two for each rank of the largest world. Each has a
    /// thread of its own in the server's process.
    pub connections: usize,
}

impl Default for StoreLimits {
    fn default() -> StoreLimits {
        StoreLimits {
            keys: 1 << 20,
            bytes: 256 << 20,
            connections: 8192,
        }
    }
}

/// How long a client may take to say who it is.
const HELLO: Duration = Duration::from_secs(5);
/// How often it is looked whether a client that waits is still there.
const LOOK: Duration = Duration::from_millis(200);
/// A connection's thread holds a frame, and little else.
const STACK: usize = 256 << 10;
/// How long the server's end tries to wake its listening thread.
const WAKE: Duration = Duration::from_secs(1);

/// Serves a store at one address, as long as it lives. Its drop ends all connections and all its threads, and does
/// not wait for any client.
///
/// *It listens on the one address that it was told*, and never on all of a host's by itself. Who can reach that address
/// can read and write the store: it knows no passwords, and belongs into a network whose members trust each other, as
/// with every launcher of this kind.
///
/// *No client can harm the others.* Each connection has a thread of its own, so one that is slow or silent holds up
/// nobody. What is no request of this protocol ends its connection; so does a request that does not arrive whole in
/// 10 seconds, and a client that has not said who it is in 5. Keys, values, connections and the memory of all of
/// them have [limits](StoreLimits), and who reaches one gets a sentence.
///
/// *Nothing waits for ever.* Every call has a deadline. When the server ends, or its host's system says that the
/// connection is gone, every client hears of it at once, also where it waits, as [`Error::StoreUnreachable`]; from then
/// on all its calls say so. A host that loses its power says nothing: then the deadline ends the wait.
///
/// ```
/// use phalanx_comm::{Store, StoreServer, TcpConfig, TcpStore};
///
/// // Port 0 lets the system choose one.
/// let server = StoreServer::bind("127.0.0.1:0", "my job")?;
/// let store = TcpStore::connect(&server.address().to_string(), TcpConfig::new("my job").rank(1))?;
/// store.set("loss", b"0.5")?;
/// // The process that serves it needs no connection of its own.
/// assert_eq!(server.store(store.deadline()).get("loss")?, b"0.5");
/// # Ok::<(), phalanx_comm::Error>(())
/// ```
#[derive(Debug)]
pub struct StoreServer {
    address: SocketAddr,
    served: Shared<Served>,
    listening: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Served {
    memory: Shared<Memory>,
    job: String,
    limits: StoreLimits,
    ended: AtomicBool,
    start: Instant,
    seats: Mutex<Vec<Seat>>,
    clients: Clients,
}

/// A connection.
#[derive(Debug)]
struct Seat {
    stream: TcpStream,
    thread: JoinHandle<()>,
    client: Shared<Client>,
}

/// What is known of a connection.
#[derive(Debug)]
struct Client {
    /// Its rank; `usize::MAX` where that is not known.
    rank: AtomicUsize,
    /// When it was last heard, in milliseconds from the server's start.
    heard: AtomicU64,
}

impl StoreServer {
    /// Listens at this address, for clients of this job. Where a name stands for several addresses, at the first of
    /// them that is one of this host.
    ///
    /// # Errors
    /// [`Error::StoreUnreachable`], if there is none, or somebody else has it.
    pub fn bind(address: &str, job: &str) -> Result<StoreServer> {
        StoreServer::with_limits(address, job, StoreLimits::default())
    }

    /// As [`bind`](StoreServer::bind), with these limits.
    ///
    /// # Errors
    /// As there.
    pub fn with_limits(address: &str, job: &str, limits: StoreLimits) -> Result<StoreServer> {
        let unreachable = |reason: String| Error::StoreUnreachable {
            store: format!("the store at {address}"),
            rank: None,
            call: "bind".into(),
            waited: Duration::ZERO,
            reason,
        };
        let all = address.to_socket_addrs();
        let all = all.map_err(|error| unreachable(format!("no such address: {error}")))?;
        let (mut found, mut reason) = (None, "it stands for no address".to_owned());
        for one in all {
            match TcpListener::bind(one) {
                Ok(listener) => {
                    found = Some(listener);
                    break;
                }
                Err(error) => reason = format!("{one}: {error}"),
            }
        }
        let Some(listener) = found else {
            return Err(unreachable(reason));
        };
        let local = listener.local_addr();
        let local = local.map_err(|error| unreachable(error.to_string()))?;
        let served = Shared::new(Served {
            memory: Shared::new(Memory::new(limits)),
            job: job.to_owned(),
            limits,
            ended: AtomicBool::new(false),
            start: Instant::now(),
            seats: Mutex::default(),
            clients: Clients::default(),
        });
        let mine = served.clone();
        let listening = thread::Builder::new()
            .name("store".into())
            .stack_size(STACK)
            .spawn(move || listen(&mine, &listener))
            .map_err(|error| unreachable(format!("no thread for it: {error}")))?;
        Ok(StoreServer {
            address: local,
            served,
            listening: Some(listening),
        })
    }

    /// Where it listens, with the port that it has.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The store itself, for this process; its calls wait for so long.
    pub fn store(&self, deadline: Duration) -> MemoryStore {
        let name = format!("the store at {}", self.address);
        MemoryStore::over(self.served.memory.clone(), &name, deadline)
    }

    /// The ranks that are connected now, in order.
    pub fn connected(&self) -> Vec<usize> {
        self.heard().into_keys().collect()
    }

    /// The ranks that are connected now, each with the time since it was last heard.
    pub(crate) fn heard(&self) -> BTreeMap<usize, Duration> {
        let now = self.served.start.elapsed();
        let mut ranks = BTreeMap::new();
        let seats = self.served.seats.lock();
        for seat in seats.iter().filter(|seat| !seat.thread.is_finished()) {
            let rank = seat.client.rank.load(SeqCst);
            let heard = Duration::from_millis(seat.client.heard.load(SeqCst));
            let silence = now.saturating_sub(heard);
            if rank != usize::MAX {
                // It has several connections, and speaks on one of them.
                let shortest = ranks.entry(rank).or_insert(silence);
                *shortest = silence.min(*shortest);
            }
        }
        ranks
    }
}

impl Drop for StoreServer {
    fn drop(&mut self) {
        self.served.ended.store(true, SeqCst);
        self.served.memory.close("its server has ended");
        let seats = std::mem::take(&mut *self.served.seats.lock());
        // Ends what its thread reads or writes.
        let end = |seat: &Seat| drop(seat.stream.shutdown(Shutdown::Both));
        seats.iter().for_each(end);
        // Nothing but a connection ends `accept`. Where none can be made, a thread is left behind that does nothing,
        // rather than a program that does not end.
        let woken = TcpStream::connect_timeout(&self.address, WAKE).is_ok();
        if let Some(listening) = self.listening.take().filter(|_| woken) {
            let _ = listening.join();
        }
        let late = std::mem::take(&mut *self.served.seats.lock());
        late.iter().for_each(end);
        for seat in seats.into_iter().chain(late) {
            // It has caught nothing that could panic; and a drop is no place to say so.
            let _ = seat.thread.join();
        }
    }
}

fn listen(served: &Shared<Served>, listener: &TcpListener) {
    loop {
        let accepted = listener.accept();
        if served.ended.load(SeqCst) {
            return;
        }
        match accepted {
            Ok((stream, _)) => seat(served, stream),
            // One that has gone again; or no descriptor is left for it: others may go.
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Gives a connection a thread of its own. Where there is none, the connection is dropped, and so ended.
fn seat(served: &Shared<Served>, stream: TcpStream) {
    let Ok(mine) = stream.try_clone() else {
        return;
    };
    let mut seats = served.seats.lock();
    let (ended, live): (Vec<Seat>, Vec<Seat>) = std::mem::take(&mut *seats)
        .into_iter()
        .partition(|seat| seat.thread.is_finished());
    *seats = live;
    for seat in ended {
        let _ = seat.thread.join(); // at once
    }
    if seats.len() >= served.limits.connections {
        drop(seats);
        return turn_away(mine, served.limits.connections);
    }
    let client = Shared::new(Client {
        rank: AtomicUsize::new(usize::MAX),
        heard: AtomicU64::new(0),
    });
    let (served, seen) = (served.clone(), client.clone());
    let thread = thread::Builder::new()
        .name("store-client".into())
        .stack_size(STACK);
    let spawned = thread.spawn(move || {
        let Ok(mut channel) = Channel::new(mine) else {
            return;
        };
        let mut number = None;
        // Why a connection has ended matters to its client, which is told where that is possible.
        let _ = served.serve(&mut channel, &seen, &mut number);
        channel.end();
        let left = number.map(|number| served.clients.leave(number));
        for (key, value) in left.into_iter().flatten() {
            let claim = Request::Claim { key, value };
            let _ = served.memory.answer(&claim, Duration::ZERO);
        }
    });
    if let Ok(thread) = spawned {
        seats.push(Seat {
            stream,
            thread,
            client,
        });
    }
}

/// One connection too many hears so. At once, on the thread that listens, and waiting for nothing.
fn turn_away(stream: TcpStream, limit: usize) {
    let Ok(mut channel) = Channel::new(stream) else {
        return;
    };
    let why = format!("it has {limit} connections, which is its limit");
    if channel.greet_back().is_ok() {
        let _ = say(&mut channel, &Err(Refusal::Closed(why)));
    }
    channel.end();
}

impl Served {
    /// One connection, from its greeting to its end. Its client's number is left in `number`.
    fn serve(
        &self,
        channel: &mut Channel,
        client: &Client,
        number: &mut Option<u64>,
    ) -> Result<(), Lost> {
        channel.greet_back()?;
        let hello = channel.hear_hello(Instant::now().checked_add(HELLO))?;
        if hello.job != self.job {
            let (theirs, ours) = (&hello.job, &self.job);
            let why = format!("it serves the job `{ours}`, and not `{theirs}`");
            return say(channel, &Err(Refusal::Closed(why)));
        }
        let me = match self.clients.enter(hello.client) {
            Ok(me) => me,
            Err(refusal) => return say(channel, &Err(refusal)),
        };
        *number = Some(me);
        self.hear(client);
        client.rank.store(hello.rank.unwrap_or(usize::MAX), SeqCst);
        say(channel, &Ok(Reply::Number(me as i64)))?;
        loop {
            let bytes = match channel.receive(None) {
                Err(Lost::Garbage(what)) => {
                    let why = format!("it was sent what is no request: {what}");
                    return say(channel, &Err(Refusal::Closed(why)));
                }
                bytes => bytes?,
            };
            let Some(request) = Request::read(&bytes) else {
                let why = "it was sent what is no request".into();
                return say(channel, &Err(Refusal::Closed(why)));
            };
            drop(bytes);
            self.hear(client);
            let mut answer = self.answer(channel, &request)?;
            if let (Request::OnDisconnect { key, value }, Ok(_)) = (&request, &answer) {
                let left = self.clients.leave_to_end(me, key, value.as_deref());
                answer = left.map(|()| Reply::Done);
            }
            say(channel, &answer)?;
        }
    }

    fn hear(&self, client: &Client) {
        let now = self.start.elapsed().as_millis();
        client
            .heard
            .store(u64::try_from(now).unwrap_or(u64::MAX), SeqCst);
    }

    /// Waits in short pieces, so that a client that has gone meanwhile is known to have.
    fn answer(&self, channel: &Channel, request: &Request) -> Result<Answer, Lost> {
        let start = Instant::now();
        loop {
            let left = request.patience().saturating_sub(start.elapsed());
            let answer = self.memory.answer(request, left.min(LOOK));
            if !matches!(answer, Ok(Reply::NotYet(_))) || left <= LOOK {
                return Ok(answer);
            }
            if channel.has_ended() {
                return Err(Lost::Closed);
            }
        }
    }
}

fn say(channel: &mut Channel, answer: &Answer) -> Result<(), Lost> {
    let mut out = Vec::new();
    frame(&mut out, |out| write_answer(answer, out));
    channel.send(&out)
}

/// What a server says when it has heard who a client is, and to each request.
pub(super) fn hear(channel: &mut Channel, until: Option<Instant>) -> Result<Answer, Lost> {
    let bytes = channel.receive(until)?;
    let answer = read_answer(&bytes);
    answer.ok_or_else(|| Lost::Garbage(format!("{} bytes that are no answer", bytes.len())))
}

/// The longest time between the end of a request's patience and its answer.
pub(super) const GRACE: Duration = WHOLE;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store, TcpConfig, TcpStore};

    #[test]
    fn who_says_nothing_is_silent_for_longer_and_longer() {
        let server = StoreServer::bind("127.0.0.1:0", "job").unwrap();
        let address = server.address().to_string();
        let client = |rank| TcpStore::connect(&address, TcpConfig::new("job").rank(rank)).unwrap();
        let (speaks, silent) = (client(3), client(5));
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(300) {
            speaks.add("n", 1).unwrap();
        }
        let heard = server.heard();
        assert_eq!(heard.keys().copied().collect::<Vec<_>>(), [3, 5]);
        assert!(heard[&5] >= Duration::from_millis(290), "{heard:?}");
        assert!(heard[&3] < heard[&5], "{heard:?}");
        // A second connection of a rank, which waits, does not hide that it speaks on the first.
        thread::scope(|scope| {
            let waits = scope.spawn(|| speaks.get("end"));
            thread::sleep(Duration::from_millis(100));
            speaks.add("n", 1).unwrap();
            let heard = server.heard();
            assert!(heard[&3] < heard[&5], "{heard:?}");
            silent.set("end", b"").unwrap();
            waits.join().unwrap().unwrap();
        });
        drop(silent);
        while server.connected() != [3] {
            thread::yield_now();
        }
    }
}
