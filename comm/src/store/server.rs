//! [`StoreServer`]: serves a store to other processes over TCP.

use super::frame::{Channel, Lost, WHOLE, frame};
use super::memory::{Memory, MemoryStore};
use super::request::{Answer, Refusal, Reply, Request, read_answer, write_answer};
use crate::error::{Error, Result};
use crate::sync::Mutex;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
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
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    memory: Arc<Memory>,
    job: String,
    limits: StoreLimits,
    ended: AtomicBool,
    seats: Mutex<Vec<Seat>>,
}

/// A connection.
#[derive(Debug)]
struct Seat {
    stream: TcpStream,
    thread: JoinHandle<()>,
    /// The client's rank; `usize::MAX` where it is not known.
    rank: Arc<AtomicUsize>,
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
        let shared = Arc::new(Shared {
            memory: Arc::new(Memory::new(limits)),
            job: job.to_owned(),
            limits,
            ended: AtomicBool::new(false),
            seats: Mutex::default(),
        });
        let mine = Arc::clone(&shared);
        let listening = thread::Builder::new()
            .name("store".into())
            .stack_size(STACK)
            .spawn(move || mine.listen(&listener))
            .map_err(|error| unreachable(format!("no thread for it: {error}")))?;
        Ok(StoreServer {
            address: local,
            shared,
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
        MemoryStore::over(Arc::clone(&self.shared.memory), &name, deadline)
    }

    /// The ranks that are connected now, in order.
    pub fn connected(&self) -> Vec<usize> {
        let seats = self.shared.seats.lock();
        let live = seats.iter().filter(|seat| !seat.thread.is_finished());
        let mut ranks: Vec<usize> = live.map(|seat| seat.rank.load(SeqCst)).collect();
        drop(seats);
        ranks.retain(|&rank| rank != usize::MAX);
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    }
}

impl Drop for StoreServer {
    fn drop(&mut self) {
        self.shared.ended.store(true, SeqCst);
        self.shared.memory.close("its server has ended");
        let seats = std::mem::take(&mut *self.shared.seats.lock());
        // Ends what its thread reads or writes.
        let end = |seat: &Seat| drop(seat.stream.shutdown(Shutdown::Both));
        seats.iter().for_each(end);
        // Nothing but a connection ends `accept`. Where none can be made, a thread is left behind that does nothing,
        // rather than a program that does not end.
        let woken = TcpStream::connect_timeout(&self.address, WAKE).is_ok();
        if let Some(listening) = self.listening.take().filter(|_| woken) {
            let _ = listening.join();
        }
        let late = std::mem::take(&mut *self.shared.seats.lock());
        late.iter().for_each(end);
        for seat in seats.into_iter().chain(late) {
            // It has caught nothing that could panic; and a drop is no place to say so.
            let _ = seat.thread.join();
        }
    }
}

impl Shared {
    fn listen(self: &Arc<Shared>, listener: &TcpListener) {
        loop {
            let accepted = listener.accept();
            if self.ended.load(SeqCst) {
                return;
            }
            match accepted {
                Ok((stream, _)) => self.seat(stream),
                // One that has gone again; or no descriptor is left for it: others may go.
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Gives a connection a thread of its own. Where there is none, the connection is dropped, and so ended.
    fn seat(self: &Arc<Shared>, stream: TcpStream) {
        let Ok(mine) = stream.try_clone() else {
            return;
        };
        let mut seats = self.seats.lock();
        seats.retain(|seat| !seat.thread.is_finished());
        let full = seats.len() >= self.limits.connections;
        let rank = Arc::new(AtomicUsize::new(usize::MAX));
        let (shared, seen) = (Arc::clone(self), Arc::clone(&rank));
        let thread = thread::Builder::new()
            .name("store-client".into())
            .stack_size(STACK);
        if full {
            drop(seats);
            // At once, on the thread that listens, and waiting for nothing.
            if let Ok(mut channel) = Channel::new(mine) {
                let limit = self.limits.connections;
                let why = format!("it has {limit} connections, which is its limit");
                let _ = channel
                    .greet_back()
                    .and_then(|()| say(&mut channel, &Err(Refusal::Closed(why))));
                channel.end();
            }
            return;
        }
        let spawned = thread.spawn(move || {
            let Ok(mut channel) = Channel::new(mine) else {
                return;
            };
            let mut claim = None;
            // Why a connection has ended matters to its client, which is told where that is possible.
            let _ = shared.serve(&mut channel, &seen, &mut claim);
            channel.end();
            if let Some((key, value)) = claim.take() {
                let _ = shared
                    .memory
                    .answer(&Request::Claim { key, value }, Duration::ZERO);
            }
        });
        if let Ok(thread) = spawned {
            seats.push(Seat {
                stream,
                thread,
                rank,
            });
        }
    }

    /// One connection, from its greeting to its end.
    fn serve(
        &self,
        channel: &mut Channel,
        rank: &AtomicUsize,
        claim: &mut Option<(String, Vec<u8>)>,
    ) -> Result<(), Lost> {
        channel.greet_back()?;
        let hello = channel.hear_hello(Instant::now().checked_add(HELLO))?;
        if hello.job != self.job {
            let (theirs, ours) = (&hello.job, &self.job);
            let why = format!("it serves the job `{ours}`, and not `{theirs}`");
            return say(channel, &Err(Refusal::Closed(why)));
        }
        rank.store(hello.rank.unwrap_or(usize::MAX), SeqCst);
        say(channel, &Ok(Reply::Done))?;
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
            let answer = self.answer(channel, &request)?;
            if let (Request::OnDisconnect { claim: new }, Ok(_)) = (&request, &answer) {
                claim.clone_from(new);
            }
            say(channel, &answer)?;
        }
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
