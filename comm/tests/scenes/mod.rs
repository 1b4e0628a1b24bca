//! Scenes in which one rank of a group commits a crime, made from a seed: for the tests that play them on threads
//! (`divergence.rs`) and on processes. Here is what the ranks do, and which error is right.

use phalanx_comm::op::Difference;
use phalanx_comm::{DType, Error, Label, ProcessGroup, ReduceOp, Result, Tensor};
use std::time::Duration;

/// SplitMix64: enough for choices, and the seed of a failure reproduces it.
pub struct Choice(u64);

impl Choice {
    pub fn below(&mut self, n: usize) -> usize {
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
    pub kind: usize,
    pub dtype: DType,
    pub len: usize,
    pub op: ReduceOp,
    pub root: usize,
    /// Whether it is waited for at once, or at the end.
    pub at_once: bool,
}

pub const KINDS: usize = 9;

impl Step {
    pub fn random(c: &mut Choice, n: usize) -> Step {
        Step {
            kind: c.below(KINDS),
            dtype: DType::ALL[c.below(6)],
            len: [0, 1, 5, 700, 9000][c.below(5)],
            op: [ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min][c.below(3)],
            root: c.below(n),
            at_once: c.below(2) == 0,
        }
    }

    /// Issues the operation; gives a closure that waits for it.
    pub fn issue(&self, g: &dyn ProcessGroup) -> Result<Box<dyn FnOnce() -> Result<()>>> {
        let t = |dims: &[usize]| Tensor::zeros(dims, self.dtype, g.device());
        let n = g.size();
        macro_rules! later {
            ($work:expr) => {{
                let work = $work?;
                Box::new(move || work.wait().map(drop))
            }};
        }
        Ok(match self.kind {
            0 | 1 => later!(g.all_reduce(t(&[self.len])?, self.op)),
            2 => later!(g.broadcast(t(&[self.len])?, self.root)),
            3 => later!(g.reduce(t(&[self.len])?, self.op, self.root)),
            4 => later!(g.all_gather(t(&[self.len])?)),
            5 => later!(g.gather(t(&[self.len])?, self.root)),
            6 => later!(g.reduce_scatter(t(&[n, self.len])?, self.op)),
            7 => later!(g.all_to_all(t(&[n, self.len])?)),
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
pub const CRIMES: [Crime; 13] = [
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

/// Of the worlds in which somebody waits in vain.
/// Long enough for a rank to be late by accident; ThreadSanitizer makes it slower.
pub const DEADLINE: Duration = Duration::from_millis(if cfg!(phalanx_tsan) { 1000 } else { 200 });

pub struct Scene {
    pub steps: Vec<Step>,
    pub at: usize,
    pub culprit: usize,
    pub crime: Crime,
}

impl Scene {
    pub fn random(seed: u64, n: usize) -> Scene {
        let c = &mut Choice(seed);
        let mut steps: Vec<Step> = (0..3 + c.below(6)).map(|_| Step::random(c, n)).collect();
        let at = c.below(steps.len());
        let crime = match seed % 50 {
            0 => Crime::Late,
            1 => Crime::Recv,
            k => CRIMES[k as usize % CRIMES.len()],
        };
        // The crime needs a step in which it shows.
        let step = &mut steps[at];
        match crime {
            Crime::Root => step.kind = 2,
            Crime::Reduction => step.kind = 0,
            Crime::Shape | Crime::DType => step.kind = c.below(KINDS - 1),
            Crime::Order => {
                step.kind = 4;
                let other = Step { kind: 2, ..*step };
                steps.insert(at + 1, other);
            }
            _ => {}
        }
        Scene {
            steps,
            at,
            culprit: c.below(n),
            crime,
        }
    }

    /// What the culprit calls.
    pub fn wrong_step(&self, n: usize) -> Step {
        let right = self.steps[self.at];
        match self.crime {
            Crime::Other => Step {
                kind: (right.kind.max(1) + 1) % KINDS,
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
                root: (right.root + 1) % n,
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
    pub fn play(&self, g: &dyn ProcessGroup) -> Result<()> {
        let (n, me) = (g.size(), g.rank());
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
                    Crime::Late => std::thread::sleep(DEADLINE * 2),
                    Crime::Abort => g.abort("on purpose"),
                    Crime::Recv => g
                        .recv([2].into(), DType::U8, (me + 1) % n, 1)?
                        .wait()
                        .map(drop)?,
                    _ => step = self.wrong_step(n),
                }
            }
            if me == self.culprit && self.crime == Crime::Order && k == self.at + 1 {
                step = self.steps[self.at];
            }
            let behind = self.crime == Crime::Label && me == self.culprit && k == self.at;
            let label = Label {
                owner: 7,
                step: k as u64 - u64::from(behind && k > 0),
                part: u64::from(behind),
            };
            let wait = step.issue(&*g.labelled(label))?;
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

pub fn own_error(rank: usize) -> Error {
    Error::InvalidArgument {
        op: "test",
        rank,
        reason: "on purpose".into(),
    }
}

/// Whether the error names the culprit and what it did.
pub fn is_right(e: &Error, scene: &Scene, n: usize) -> bool {
    let culprit = scene.culprit;
    let divergence = |e: &Error| match e {
        Error::Divergence { rank, other, .. } => {
            // With two ranks nobody can know which is right. With more, the odd one out is named,
            // unless the others had not come yet.
            [*rank, *other].contains(&culprit)
        }
        _ => false,
    };
    match scene.crime {
        Crime::Other
        | Crime::Shape
        | Crime::DType
        | Crime::Root
        | Crime::Reduction
        | Crime::Order => divergence(e),
        Crime::Label => {
            let of_label = |d: &Difference| *d == Difference::Label;
            divergence(e)
                && matches!(e, Error::Divergence { difference, .. } if of_label(difference))
        }
        // The next call takes the place of the missing one; or, where all later ones are equal, the
        // culprit is done too early.
        Crime::Missing => {
            divergence(e) || matches!(e, Error::RankReturned { rank, .. } if *rank == culprit)
        }
        Crime::Return => matches!(e, Error::RankReturned { rank, .. } if *rank == culprit),
        Crime::Error => {
            matches!(e, Error::RankFailed { rank, message } if *rank == culprit && message.contains("on purpose"))
        }
        Crime::Panic => {
            matches!(e, Error::RankPanicked { rank, message } if *rank == culprit && message == "on purpose")
        }
        Crime::Abort => {
            matches!(e, Error::Aborted { rank, reason } if *rank == culprit && reason == "on purpose")
        }
        // Whose deadline ends first: one who waits for the culprit.
        Crime::Late => {
            matches!(e, Error::DeadlineExceeded { missing, .. } if *missing == [culprit])
        }
        // The culprit waits for its neighbour, the others for the culprit: one of them is first.
        Crime::Recv => match e {
            Error::DeadlineExceeded { rank, missing, .. } => {
                (*rank == culprit && *missing == [(culprit + 1) % n]) || *missing == [culprit]
            }
            _ => false,
        },
        Crime::Message => divergence(e),
    }
}
