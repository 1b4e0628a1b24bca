//! What travels between a [`TcpStore`](super::TcpStore) and its [`StoreServer`](super::StoreServer): first a greeting
//! of each side, then frames, each its length in four bytes and so many bytes. [`Channel`] sends and receives them,
//! and waits for nobody without a limit.

use super::bytes::{Reader, Writer};
use super::request::MOST_FRAME_BYTES;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// With what either side begins, so that no other program is taken for one of us: `PHXS`, and the version.
const MAGIC: [u8; 4] = *b"PHXS";
const VERSION: u8 = 2;

/// How long a frame may take that has begun: both to send it, and to receive it.
pub(crate) const WHOLE: Duration = Duration::from_secs(10);
/// The longest name of a job, in bytes.
const MOST_JOB_BYTES: usize = 1 << 10;
/// No longer limit is given to the system, which does not take any.
const LONG: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a client says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    /// Its rank, where it has one.
    pub(super) rank: Option<usize>,
    /// The number that the server has given it, where this is not its first connection.
    pub(super) client: Option<u64>,
    /// The job that it belongs to, which is the server's.
    pub(super) job: String,
}

/// Why nothing more can be said or heard.
#[derive(Debug)]
pub(super) enum Lost {
    /// The other side has ended the connection.
    Closed,
    /// It has said nothing for so long.
    Silent(Duration),
    /// It says what makes no sense.
    Garbage(String),
    /// It speaks another version.
    Version(u8),
    /// The system says so.
    Io(io::Error),
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lost::Closed => f.write_str("the other side has ended the connection"),
            Lost::Silent(time) => write!(f, "nothing came for {time:?}"),
            Lost::Garbage(what) => write!(f, "what came is nothing that a store says: {what}"),
            Lost::Version(theirs) => write!(
                f,
                "the other side speaks version {theirs} of the protocol, and this one version {VERSION}: they are \
                 different programs"
            ),
            Lost::Io(error) => write!(f, "{error}"),
        }
    }
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Lost {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match error.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof => Lost::Closed,
            _ => Lost::Io(error),
        }
    }
}

/// One side of a connection.
#[derive(Debug)]
pub(super) struct Channel {
    stream: TcpStream,
    /// What has come and was not yet taken.
    buffer: Vec<u8>,
    /// The limit that the system has now for a read.
    read_limit: Option<Duration>,
}

impl Channel {
    pub(super) fn new(stream: TcpStream) -> io::Result<Channel> {
        stream.set_nodelay(true)?; // every frame is waited for
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(Some(WHOLE))?;
        Ok(Channel {
            stream,
            buffer: Vec::new(),
            read_limit: None,
        })
    }

    /// A client's greeting.
    pub(super) fn greet(&mut self, hello: &Hello) -> Result<(), Lost> {
        let mut out = Writer::default();
        out.raw(&MAGIC).byte(VERSION);
        out.number(hello.rank.map_or(u64::MAX, |rank| rank as u64));
        out.number(hello.client.unwrap_or(0));
        out.text(&hello.job);
        Ok(self.stream.write_all(&out.into_bytes())?)
    }

    /// The server's, to any client at once.
    pub(super) fn greet_back(&mut self) -> Result<(), Lost> {
        Ok(self.stream.write_all(&[&MAGIC[..], &[VERSION]].concat())?)
    }

    fn magic(&mut self, until: Option<Instant>) -> Result<(), Lost> {
        let first = self.take(MAGIC.len() + 1, until)?;
        if first[..MAGIC.len()] != MAGIC {
            let shown = String::from_utf8_lossy(&first).escape_debug().to_string();
            return Err(Lost::Garbage(format!("it begins with `{shown}`")));
        }
        match first[MAGIC.len()] {
            VERSION => Ok(()),
            theirs => Err(Lost::Version(theirs)),
        }
    }

    /// The client's greeting.
    pub(super) fn hear_hello(&mut self, until: Option<Instant>) -> Result<Hello, Lost> {
        self.magic(until)?;
        let head = self.take(24, until)?;
        let mut head = Reader::new(&head);
        let (rank, client, len) = (head.number(), head.number(), head.size());
        let len = len.filter(|&len| len <= MOST_JOB_BYTES);
        let len = len.ok_or_else(|| Lost::Garbage("the name of its job is too long".into()))?;
        let job = String::from_utf8(self.take(len, until)?);
        Ok(Hello {
            rank: rank
                .and_then(|rank| usize::try_from(rank).ok())
                .filter(|&rank| rank != usize::MAX),
            client: client.filter(|&client| client != 0),
            job: job.map_err(|_| Lost::Garbage("the name of its job is no text".into()))?,
        })
    }

    /// The server's greeting.
    pub(super) fn hear_server(&mut self, until: Option<Instant>) -> Result<(), Lost> {
        self.magic(until)
    }

    /// Sends frames, one behind the other.
    pub(super) fn send(&mut self, frames: &[u8]) -> Result<(), Lost> {
        self.stream
            .write_all(frames)
            .map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Lost::Silent(WHOLE),
                _ => error.into(),
            })
    }

    /// The next frame. It may begin until `start`, `None` for ever, and has [`WHOLE`] from then on.
    pub(super) fn receive(&mut self, start: Option<Instant>) -> Result<Vec<u8>, Lost> {
        if self.buffer.is_empty() {
            self.fill(start)?;
        }
        let whole = Instant::now().checked_add(WHOLE);
        let head = self.take(4, whole)?;
        let len = head.first_chunk().map_or(0, |len| u32::from_le_bytes(*len)) as usize;
        if len > MOST_FRAME_BYTES {
            let sentence = format!("a frame of {len} bytes, and the limit is {MOST_FRAME_BYTES}");
            return Err(Lost::Garbage(sentence));
        }
        self.take(len, whole)
    }

    /// Takes so many bytes, when they have come.
    fn take(&mut self, len: usize, until: Option<Instant>) -> Result<Vec<u8>, Lost> {
        while self.buffer.len() < len {
            self.fill(until)?;
        }
        let rest = self.buffer.split_off(len);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    /// Waits for bytes, and takes in what there is.
    fn fill(&mut self, until: Option<Instant>) -> Result<(), Lost> {
        let start = Instant::now();
        let limit = match until {
            None => None,
            Some(until) => match until.checked_duration_since(start) {
                None | Some(Duration::ZERO) => return Err(Lost::Silent(Duration::ZERO)),
                // No system call where hardly anything changes.
                Some(left) => Some(left.min(LONG)),
            },
        };
        if limit != self.read_limit {
            self.stream.set_read_timeout(limit)?;
            self.read_limit = limit;
        }
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(Lost::Closed),
            Ok(n) => {
                self.buffer.extend(&bytes[..n]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    Err(Lost::Silent(start.elapsed()))
                }
                _ => Err(error.into()),
            },
        }
    }

    /// Whether the other side has ended the connection, without waiting for anything.
    pub(super) fn has_ended(&self) -> bool {
        if !self.buffer.is_empty() {
            return false; // it will be seen when that has been taken
        }
        let look = || {
            self.stream.set_nonblocking(true)?;
            let seen = self.stream.peek(&mut [0]);
            self.stream.set_nonblocking(false)?;
            seen
        };
        match look() {
            Ok(seen) => seen == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    pub(super) fn end(&self) {
        // That it has ended already is no harm.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Appends a frame of what `write` writes.
pub(super) fn frame(out: &mut Vec<u8>, write: impl FnOnce(&mut Writer)) {
    let mut body = Writer::default();
    write(&mut body);
    let body = body.into_bytes();
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(body);
}
