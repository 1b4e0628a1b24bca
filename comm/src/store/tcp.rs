//! [`TcpStore`]: a store that another process serves.

use super::Store;
use super::frame::{Channel, Hello, Lost, frame};
use super::memory::failure;
use super::request::{Refusal, Reply, Request};
use super::server::{GRACE, hear};
use crate::error::{Error, Result};
use crate::sync::Mutex;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How to reach a [`StoreServer`](super::StoreServer).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TcpConfig {
    /// The job, which is the server's: so a rank of another job, or of one that was started again since, is refused.
    /// At most 1 KiB.
    pub job: String,
    /// This process's rank, which errors name.
    pub rank: Option<usize>,
    /// The rank whose process serves the store, for errors, where that is known.
    pub served_by: Option<usize>,
    /// How long a call may last; 5 minutes by default.
    pub deadline: Duration,
    /// How long [`connect`](TcpStore::connect) tries; 2 minutes by default.
    pub start_deadline: Duration,
}

impl TcpConfig {
    /// For this job, with the defaults.
    pub fn new(job: &str) -> TcpConfig {
        TcpConfig {
            job: job.to_owned(),
            rank: None,
            served_by: None,
            deadline: Duration::from_secs(300),
            start_deadline: Duration::from_secs(120),
        }
    }

    /// With this rank.
    pub fn rank(self, rank: usize) -> TcpConfig {
        TcpConfig {
            rank: Some(rank),
            ..self
        }
    }

    /// With this rank's process as the one that serves the store.
    pub fn served_by(self, rank: usize) -> TcpConfig {
        TcpConfig {
            served_by: Some(rank),
            ..self
        }
    }

    /// With this deadline.
    pub fn deadline(self, deadline: Duration) -> TcpConfig {
        TcpConfig { deadline, ..self }
    }

    /// With this deadline for the start.
    pub fn start_deadline(self, start_deadline: Duration) -> TcpConfig {
        TcpConfig {
            start_deadline,
            ..self
        }
    }
}

/// How long between two tries to connect: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));
/// One try to have one more connection takes so long at most: meanwhile another thread may have given one back.
const ONE_MORE: Duration = Duration::from_secs(2);
/// Requests of so many bytes are sent before the first answer is read: so few that they find room on their way, also
/// while the server waits for this side to read.
const AHEAD: usize = 16 << 10;

/// A client of a [`StoreServer`](super::StoreServer); its docs have an example. PyTorch's `TCPStore`, where it is not
/// the master.
///
/// Calls of several threads run side by side, each on a connection of its own, which is used again. Where no other
/// connection can be made, a call waits until another thread's has ended, at most for the deadline. The store is lost
/// when a connection breaks, and stays so: another server at that address would know nothing of what this one was told.
#[derive(Debug)]
pub struct TcpStore {
    name: String,
    address: String,
    config: TcpConfig,
    /// Connections that nobody uses at the moment.
    idle: Mutex<Vec<Channel>>,
    lost: Mutex<Option<String>>,
    /// The number that the server has given to this client, all of whose connections say it.
    client: OnceLock<u64>,
}

impl TcpStore {
    /// Connects to the server at `address`, as in `10.0.0.1:29500`; tries again until it is there.
    ///
    /// # Errors
    /// [`Error::StoreUnreachable`], if it is not there in time, or serves another job.
    pub fn connect(address: &str, config: TcpConfig) -> Result<TcpStore> {
        let by = config.served_by;
        let by = by.map_or_else(String::new, |rank| {
            format!(", which rank {rank}'s process serves")
        });
        let store = TcpStore {
            name: format!("the store at {address}{by}"),
            address: address.to_owned(),
            config,
            idle: Mutex::default(),
            lost: Mutex::default(),
            client: OnceLock::new(),
        };
        let start = Instant::now();
        let limit = store.config.start_deadline;
        let mut pause = RETRY.0;
        loop {
            let left = limit.saturating_sub(start.elapsed());
            let refused = match store.open(left) {
                Ok(channel) => {
                    store.idle.lock().push(channel);
                    return Ok(store);
                }
                Err(refused) => refused,
            };
            let waited = start.elapsed();
            if matches!(refused, Refused::Ever(_)) || waited.saturating_add(pause) >= limit {
                return Err(store.unreachable("connect".into(), waited, refused.reason()));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// A new connection, with both greetings.
    fn open(&self, limit: Duration) -> Result<Channel, Refused> {
        let until = Instant::now().checked_add(limit);
        let left = || match until {
            None => limit,
            Some(until) => until.saturating_duration_since(Instant::now()),
        };
        let now = |error: &dyn std::fmt::Display| Refused::Now(error.to_string());
        let addresses = self.address.to_socket_addrs();
        let addresses = addresses.map_err(|e| Refused::Now(format!("no such address: {e}")))?;
        let (mut stream, mut reason) = (None, "it stands for no address".to_owned());
        for address in addresses {
            // No time at all is an error of another kind.
            let limit = left().clamp(Duration::from_millis(1), GRACE);
            match TcpStream::connect_timeout(&address, limit) {
                Ok(connected) => {
                    stream = Some(connected);
                    break;
                }
                Err(error) => reason = error.to_string(),
            }
        }
        let stream = stream.ok_or(Refused::Now(reason))?;
        let lost = |lost: Lost| match lost {
            Lost::Version(_) => Refused::Ever(lost.to_string()),
            Lost::Silent(_) => {
                Refused::Now("whoever listens there does not answer as a store does".into())
            }
            lost => Refused::Now(lost.to_string()),
        };
        let mut channel = Channel::new(stream).map_err(|e| now(&e))?;
        let soon = Instant::now().checked_add(left().min(GRACE));
        let hello = Hello {
            rank: self.config.rank,
            client: self.client.get().copied(),
            job: self.config.job.clone(),
        };
        channel.greet(&hello).map_err(lost)?;
        channel.hear_server(soon).map_err(lost)?;
        match hear(&mut channel, soon).map_err(lost)? {
            Ok(Reply::Number(number)) => {
                self.client.get_or_init(|| number as u64);
                Ok(channel)
            }
            Ok(other) => Err(now(&format!("it greets with {other:?}"))),
            Err(Refusal::Request(why) | Refusal::Closed(why)) => Err(Refused::Now(why)),
        }
    }

    /// A connection for one call: one that nobody uses, or one more. There is always another one, unless the store is
    /// lost: so what keeps this one from being made is no loss.
    fn connection(&self, call: &Request, start: Instant) -> Result<Channel> {
        let limit = self.config.deadline;
        let unreachable =
            |reason: String| self.unreachable(call.to_string(), start.elapsed(), reason);
        let mut next = start; // when to try to make one
        let mut pause = RETRY.0;
        loop {
            if let Some(reason) = &*self.lost.lock() {
                return Err(unreachable(reason.clone()));
            }
            if let Some(channel) = self.idle.lock().pop() {
                return Ok(channel);
            }
            let left = limit.saturating_sub(start.elapsed());
            if Instant::now() >= next {
                let refused = match self.open(left.min(ONE_MORE)) {
                    Ok(channel) => return Ok(channel),
                    Err(refused) => refused,
                };
                if start.elapsed().saturating_add(pause) >= limit {
                    return Err(unreachable(refused.reason()));
                }
                next = Instant::now() + pause;
                pause = (pause * 2).min(RETRY.1);
            }
            std::thread::sleep(RETRY.0);
        }
    }

    /// Gives a connection back. Where the store was lost meanwhile, it ends, so that the server knows that this client
    /// is gone.
    fn give_back(&self, channel: Channel) {
        let lost = self.lost.lock();
        match &*lost {
            None => self.idle.lock().push(channel),
            Some(_) => channel.end(),
        }
    }

    /// A talk has broken. Returns why the store is lost.
    fn lose(&self, channel: &Channel, reason: String) -> String {
        channel.end();
        let mut lost = self.lost.lock();
        self.idle.lock().drain(..).for_each(|idle| idle.end());
        lost.get_or_insert(reason).clone()
    }

    fn unreachable(&self, call: String, waited: Duration, reason: String) -> Error {
        Error::StoreUnreachable {
            store: self.name.clone(),
            rank: self.config.rank,
            call,
            waited,
            reason,
        }
    }

    /// Asks over one connection. An answer that refuses a request ends it, but not the connection.
    fn talk(
        &self,
        channel: &mut Channel,
        requests: &[Request],
        replies: &mut Vec<Reply>,
    ) -> Result<Option<Refusal>, Lost> {
        let mut next = 0;
        let mut refusal = None;
        while next < requests.len() && refusal.is_none() {
            let mut out = Vec::new();
            let first = next;
            while next < requests.len() && (next == first || out.len() < AHEAD) {
                let before = out.len();
                frame(&mut out, |out| requests[next].write(out));
                if next > first && out.len() > AHEAD {
                    out.truncate(before);
                    break;
                }
                next += 1;
            }
            channel.send(&out)?;
            for request in &requests[first..next] {
                let limit = request.patience().saturating_add(GRACE);
                let until = Instant::now().checked_add(limit.max(self.config.deadline));
                match hear(channel, until)? {
                    // The answers to what was sent with it are taken, and forgotten.
                    _ if refusal.is_some() => {}
                    Ok(reply) => replies.push(reply),
                    Err(why) => refusal = Some(why),
                }
            }
        }
        Ok(refusal)
    }
}

/// Why there is no connection: at the moment, or for good.
enum Refused {
    Now(String),
    Ever(String),
}

impl Refused {
    fn reason(self) -> String {
        match self {
            Refused::Now(reason) | Refused::Ever(reason) => reason,
        }
    }
}

impl Store for TcpStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn rank(&self) -> Option<usize> {
        self.config.rank
    }

    fn deadline(&self) -> Duration {
        self.config.deadline
    }

    fn ask(&self, requests: &[Request]) -> Result<Vec<Reply>> {
        let start = Instant::now();
        let mut replies = Vec::with_capacity(requests.len());
        let Some(first) = requests.first() else {
            return Ok(replies);
        };
        // Before anything is sent: what cannot travel is not sent.
        for request in requests {
            if let Some(why) = request.refusal() {
                return Err(failure(
                    self,
                    request,
                    Duration::ZERO,
                    Refusal::Request(why),
                ));
            }
        }
        let mut channel = self.connection(first, start)?;
        let end = self.talk(&mut channel, requests, &mut replies);
        let request = requests.get(replies.len()).unwrap_or(first);
        let reason = match end {
            Ok(None) => {
                self.give_back(channel);
                return Ok(replies);
            }
            Ok(Some(Refusal::Request(why))) => {
                self.give_back(channel);
                let refusal = Refusal::Request(why);
                return Err(failure(self, request, start.elapsed(), refusal));
            }
            Ok(Some(Refusal::Closed(why))) => why,
            Err(why) => why.to_string(),
        };
        let reason = self.lose(&channel, reason);
        Err(self.unreachable(request.to_string(), start.elapsed(), reason))
    }
}

impl Drop for TcpStore {
    fn drop(&mut self) {
        self.idle.lock().iter().for_each(Channel::end);
    }
}
