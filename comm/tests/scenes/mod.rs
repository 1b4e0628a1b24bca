//! Random programs of several ranks, of which one, the culprit, does something wrong at one place.

use phalanx_comm::op::Difference;
use phalanx_comm::{DType, Error, Label, Link, Message, ProcessGroup, ReduceOp, Result, Tensor};
use std::sync::Arc;
use std::time::Duration;

/// SplitMix64: enough for choices, and the seed of a failure reproduces it.
struct Choice(u64);

impl Choice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// One step of the program that all ranks run but for the culprit at one place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    kind: usize,
    dtype: DType,
    len: usize,
    op: ReduceOp,
    root: usize,
    /// Whether it is waited for at once, or at the end.
    at_once: bool,
    /// Whether each half of the world does it for itself.
    half: bool,
}

/// Collectives of which each rank gives a tensor, …
const WITH_DATA: usize = 10;
const BARRIER: usize = 10;
/// … and messages: each rank sends to the next one, round the group.
const MESSAGES: usize = 11;
const KINDS: usize = 12;
const COLLECTIVES: usize = 11;

type Wait = Box<dyn FnOnce() -> Result<()>>;

/// What a call gives, read: it is of zeros, whatever the call. On a card, that it came to nothing shows here.
trait Look {
    fn look(self) -> Result<()>;
}

impl Look for () {
    fn look(self) -> Result<()> {
        Ok(())
    }
}

impl Look for Tensor {
    fn look(self) -> Result<()> {
        let numbers = self.cast(DType::F64)?.to_vec::<f64>()?;
        let other = numbers.into_iter().find(|number| *number != 0.0);
        assert_eq!(other, None, "among the zeros of a {} tensor", self.dtype());
        Ok(())
    }
}

impl Look for Vec<Tensor> {
    fn look(self) -> Result<()> {
        self.into_iter().try_for_each(Look::look)
    }
}

impl Look for Option<Tensor> {
    fn look(self) -> Result<()> {
        self.map_or(Ok(()), Look::look)
    }
}

impl Step {
    fn random(c: &mut Choice, n: usize) -> Step {
        Step {
            kind: c.below(KINDS),
            dtype: DType::ALL[c.below(6)],
            len: [0, 1, 5, 700, 9000][c.below(5)],
            op: [ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min][c.below(3)],
            root: c.below(n),
            at_once: c.below(2) == 0,
            half: c.below(4) == 0,
        }
    }

    /// Issues the operation; gives a closure that waits for it.
    fn issue(&self, g: &dyn ProcessGroup) -> Result<Wait> {
        let t = |dims: &[usize]| Tensor::zeros(dims, self.dtype, g.device());
        let (n, me, len) = (g.size(), g.rank(), self.len);
        let root = self.root % n;
        macro_rules! later {
            ($work:expr) => {{
                let work = $work?;
                Box::new(move || work.wait()?.look())
            }};
        }
        // How many rows one rank gives another.
        let rows = |from: usize, to: usize| (from + 2 * to) % 3;
        Ok(match self.kind {
            0 | 1 => later!(g.all_reduce(t(&[len])?, self.op)),
            2 => later!(g.broadcast(t(&[len])?, root)),
            3 => later!(g.reduce(t(&[len])?, self.op, root)),
            4 => later!(g.all_gather(t(&[len])?)),
            5 => later!(g.gather(t(&[len])?, root)),
            6 => later!(g.reduce_scatter(t(&[n, len])?, self.op)),
            7 => later!(g.all_to_all(t(&[n, len])?)),
            8 => {
                let parts = if me == root {
                    Some(t(&[n, len])?)
                } else {
                    None
                };
                later!(g.scatter(parts, [len].into(), self.dtype, root))
            }
            9 => {
                let send: Vec<usize> = (0..n).map(|to| rows(me, to)).collect();
                let recv: Vec<usize> = (0..n).map(|from| rows(from, me)).collect();
                let mine = t(&[send.iter().sum(), len])?;
                later!(g.all_to_all_v(mine, &send, &recv))
            }
            // The calls of a card come one after the other: what goes round in a circle goes together.
            MESSAGES if n > 1 && !g.device().is_cpu() => {
                let send = Message::Send {
                    tensor: t(&[len])?,
                    destination: (me + 1) % n,
                    tag: 4,
                };
                let recv = Message::Recv {
                    shape: [len].into(),
                    dtype: self.dtype,
                    source: (me + n - 1) % n,
                    tag: 4,
                };
                later!(g.batch(vec![recv, send]))
            }
            MESSAGES if n > 1 => {
                let got = g.recv([len].into(), self.dtype, (me + n - 1) % n, 4)?;
                let sent = g.send(t(&[len])?, (me + 1) % n, 4)?;
                Box::new(move || got.wait()?.look().and(sent.wait()))
            }
            _ => later!(g.barrier()),
        })
    }
}

/// What the culprit does in place of its step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Crime {
    /// Calls another operation.
    Other,
    Shape,
    DType,
    Root,
    Reduction,
    /// Calls it as a part of another step.
    Label,
    /// Swaps two calls.
    Order,
    /// Leaves the call out.
    Missing,
    /// Leaves all further calls out.
    Return,
    Error,
    Panic,
    /// Says nothing for longer than the deadline.
    Late,
    Abort,
    /// Receives what nobody sends.
    Recv,
    /// Sends another shape than the other expects.
    Message,
}

/// All but those that wait for the deadline.
const CRIMES: [Crime; 13] = [
    Crime::Other,
    Crime::Shape,
    Crime::DType,
    Crime::Root,
    Crime::Reduction,
    Crime::Label,
    Crime::Order,
    Crime::Missing,
    Crime::Return,
    Crime::Error,
    Crime::Panic,
    Crime::Abort,
    Crime::Message,
];

/// Of the worlds of threads in which somebody waits in vain: long enough for a rank to be late by accident;
/// ThreadSanitizer makes it slower.
pub const DEADLINE: Duration = Duration::from_millis(if cfg!(phalanx_tsan) { 1000 } else { 200 });
/// Of those in which ranks may wait for each other in a circle: it is found after some tenths of it.
const CIRCLES: Duration = Duration::from_secs(2);
/// Of all others: nothing there may depend on a deadline, however slow the machine.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Scene {
    pub n: usize,
    steps: Vec<Step>,
    at: usize,
    pub culprit: usize,
    pub crime: Crime,
    /// Whether the ranks are processes.
    pub is_on_processes: bool,
}

impl Scene {
    pub fn random(seed: u64, n: usize) -> Scene {
        let c = &mut Choice(seed);
        let mut steps: Vec<Step> = (0..3 + c.below(6)).map(|_| Step::random(c, n)).collect();
        let at = c.below(steps.len());
        let culprit = c.below(n);
        let crime = match seed % 50 {
            0 => Crime::Late,
            1 => Crime::Recv,
            k => CRIMES[k as usize % CRIMES.len()],
        };
        // The crime needs a step in which it shows, and somebody to whom.
        let step = &mut steps[at];
        step.half &= half(culprit, n) > 1;
        match crime {
            Crime::Root => step.kind = 2,
            Crime::Reduction => step.kind = 0,
            Crime::Shape | Crime::DType if step.kind == BARRIER => step.kind = c.below(WITH_DATA),
            Crime::Other | Crime::Missing => step.kind = c.below(COLLECTIVES),
            Crime::Order => {
                step.kind = 4;
                let other = Step { kind: 2, ..*step };
                steps.insert(at + 1, other);
            }
            _ => {}
        }
        Scene {
            n,
            steps,
            at,
            culprit,
            crime,
            is_on_processes: false,
        }
    }

    pub fn deadline(&self) -> Duration {
        match self.crime {
            // Processes share cores with mpirun, and are later by accident than threads.
            Crime::Late if self.is_on_processes => 5 * DEADLINE,
            Crime::Late => DEADLINE,
            Crime::Recv | Crime::Missing => CIRCLES,
            _ => PATIENCE,
        }
    }

    /// For how long the culprit says nothing: longer than the deadline. A process is ended when it has not heard of the
    /// failure for as long again; a thread is waited for.
    fn lateness(&self) -> Duration {
        match self.is_on_processes {
            true => self.deadline() * 8 / 5,
            false => self.deadline() * 3,
        }
    }

    /// How many ranks meet where the culprit errs.
    pub fn meeting(&self) -> usize {
        let step = self.steps[self.at];
        match step.kind == MESSAGES || self.crime == Crime::Message {
            true => 2,
            false if step.half => half(self.culprit, self.n),
            false => self.n,
        }
    }

    /// What the culprit calls.
    fn wrong_step(&self) -> Step {
        let right = self.steps[self.at];
        match self.crime {
            Crime::Other => Step {
                kind: (right.kind.max(1) + 1) % COLLECTIVES,
                ..right
            },
            Crime::Shape => Step {
                len: right.len + 1,
                ..right
            },
            Crime::DType => Step {
                dtype: if right.dtype == DType::F32 {
                    DType::I64
                } else {
                    DType::F32
                },
                ..right
            },
            Crime::Root => Step {
                root: right.root + 1,
                ..right
            },
            Crime::Reduction => Step {
                op: ReduceOp::Product,
                ..right
            },
            Crime::Order => self.steps[self.at + 1],
            _ => right,
        }
    }

    /// The program of one rank.
    pub fn play(&self, g: &Arc<dyn ProcessGroup>) -> Result<()> {
        let (n, me) = (g.size(), g.rank());
        let part = g.split(Some(me as u32 % 2), 0)?;
        let part = part.expect("every rank has a color");
        let mut later = Vec::new();
        for (k, step) in self.steps.iter().enumerate() {
            let mut step = *step;
            if self.crime == Crime::Message && k == self.at {
                // The culprit sends; its neighbour expects something else.
                if me == self.culprit {
                    let t = Tensor::zeros([3], DType::F32, g.device())?;
                    g.send(t, (me + 1) % n, 5)?.wait()?;
                } else if me == (self.culprit + 1) % n {
                    g.recv([4].into(), DType::F32, self.culprit, 5)?.wait()?;
                }
            }
            if me == self.culprit && k == self.at {
                match self.crime {
                    Crime::Missing => continue,
                    Crime::Return => return Ok(()),
                    Crime::Error => return Err(own_error(me)),
                    Crime::Panic => panic!("on purpose"),
                    Crime::Late => std::thread::sleep(self.lateness()),
                    Crime::Abort => g.abort("on purpose"),
                    Crime::Recv => g
                        .recv([2].into(), DType::U8, (me + 1) % n, 1)?
                        .wait()
                        .map(drop)?,
                    _ => step = self.wrong_step(),
                }
            }
            if me == self.culprit && self.crime == Crime::Order && k == self.at + 1 {
                step = self.steps[self.at];
            }
            let behind = self.crime == Crime::Label && me == self.culprit && k == self.at;
            let label = Label::new(7, k as u64 - u64::from(behind && k > 0), u64::from(behind));
            let group = if step.half { &part } else { g };
            let wait = step.issue(&*group.labelled(label))?;
            if step.at_once {
                wait()?;
            } else {
                later.push(wait);
            }
        }
        later.into_iter().try_for_each(|wait| wait())?;
        g.barrier()?.wait()
    }
}

/// The size of the half of the world in which a rank is.
fn half(rank: usize, n: usize) -> usize {
    (0..n).filter(|r| r % 2 == rank % 2).count()
}

pub fn own_error(rank: usize) -> Error {
    Error::InvalidArgument {
        op: "test",
        rank,
        reason: "on purpose".into(),
    }
}

/// Whether the error names the culprit and what it did.
pub fn is_right(e: &Error, scene: &Scene) -> bool {
    let culprit = scene.culprit;
    let passes = |chain: &[Link]| chain.iter().any(|link| link.rank == culprit);
    let divergence = |e: &Error, is_strict: bool| match e {
        // Of two ranks nobody can know which is right. Of more, the odd one out is named.
        Error::Divergence { rank, .. } if is_strict => *rank == culprit,
        Error::Divergence { rank, other, .. } => [*rank, *other].contains(&culprit),
        _ => false,
    };
    // Threads find every circle; processes may come to the deadline before.
    let waits = |e: &Error| match e {
        Error::Deadlock { chain } => passes(chain),
        Error::DeadlineExceeded { missing, chain, .. } if scene.is_on_processes => {
            missing.contains(&culprit) || passes(chain)
        }
        _ => false,
    };
    let is_strict = scene.meeting() > 2;
    match scene.crime {
        Crime::Other
        | Crime::Shape
        | Crime::DType
        | Crime::Root
        | Crime::Reduction
        | Crime::Order
        | Crime::Message => divergence(e, is_strict),
        Crime::Label => {
            let of_label = |d: &Difference| *d == Difference::Label;
            divergence(e, is_strict)
                && matches!(e, Error::Divergence { difference, .. } if of_label(difference))
        }
        // The next call takes the place of the missing one; or, where all later ones are equal, the
        // culprit is done too early. Where the next call is one of another group, or a message, it waits there for
        // those who wait for it here. And its neighbour in that call may be one of two.
        Crime::Missing => {
            divergence(e, false)
                || matches!(e, Error::RankReturned { rank, .. } if *rank == culprit)
                || waits(e)
        }
        // It may have dropped what others had not come to yet.
        Crime::Return => {
            matches!(e, Error::RankReturned { rank, .. } | Error::Abandoned { rank, .. } if *rank == culprit)
        }
        Crime::Error => {
            matches!(e, Error::RankFailed { rank, message } if *rank == culprit && message.contains("on purpose"))
        }
        Crime::Panic => {
            matches!(e, Error::RankPanicked { rank, message } if *rank == culprit && message == "on purpose")
        }
        Crime::Abort => {
            matches!(e, Error::Aborted { rank, reason } if *rank == culprit && reason == "on purpose")
        }
        // Whose deadline ends first: one who waits for the culprit, or for one who waits for it.
        Crime::Late => {
            matches!(e, Error::DeadlineExceeded { missing, chain, .. } if missing.contains(&culprit) || passes(chain))
        }
        // The culprit waits for its neighbour, and that one for the culprit; or it gets what is meant for a later call.
        Crime::Recv => waits(e) || divergence(e, true),
    }
}

impl Scene {
    /// How many ranks hear of nothing: a culprit that returns well, fails by itself or panics.
    pub fn silent(&self) -> usize {
        match self.crime {
            Crime::Return | Crime::Error | Crime::Panic | Crime::Missing => 1,
            _ => 0,
        }
    }
}
