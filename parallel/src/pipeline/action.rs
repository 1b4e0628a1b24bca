//! One step of a pipeline plan, and its printed form: `2F0`, `1SEND_F3`, `0REDUCE_GRAD`.
//!
//! An [`Action`] is eight bytes, because a plan for a thousand ranks has tens of millions of them.

use std::fmt;
use std::str::FromStr;

/// What an [`Action`] does.
///
/// The letters are those of the zero-bubble literature (Qi et al. 2023): a backward pass is split
/// into the gradient of the stage's input (`I`) and that of its weights (`W`); `B` is both at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// `F`: the stage's forward pass.
    Forward,
    /// `I`: the gradient of the stage's inputs, which the stage before waits for.
    Input,
    /// `W`: the gradient of the stage's weights, which nobody waits for.
    Weight,
    /// `B`: `I` and `W` in one.
    Backward,
    /// `SEND_F`: an activation leaves for a later stage.
    SendForward,
    /// `RECV_F`: an activation arrives from an earlier stage.
    RecvForward,
    /// `SEND_B`: a gradient leaves for an earlier stage.
    SendBackward,
    /// `RECV_B`: a gradient arrives from a later stage.
    RecvBackward,
    /// `UNSHARD`: the stage's parameters are gathered.
    Unshard,
    /// `RESHARD`: the gathered parameters are dropped.
    Reshard,
    /// `REDUCE_GRAD`: the stage's gradient is reduced over its replicas.
    ReduceGrad,
    /// `REDUCE_TIED`: the gradients of the weights that the stage shares with another one are added up, on both. Both do so
    /// together, as a send and a receive are done together.
    ReduceTied,
}

impl Kind {
    /// Every kind, the longer spellings first, so that the first that fits is the right one.
    const SPELLINGS: [(Kind, &'static str); 12] = [
        (Kind::ReduceGrad, "REDUCE_GRAD"),
        (Kind::ReduceTied, "REDUCE_TIED"),
        (Kind::Unshard, "UNSHARD"),
        (Kind::Reshard, "RESHARD"),
        (Kind::SendForward, "SEND_F"),
        (Kind::RecvForward, "RECV_F"),
        (Kind::SendBackward, "SEND_B"),
        (Kind::RecvBackward, "RECV_B"),
        (Kind::Forward, "F"),
        (Kind::Input, "I"),
        (Kind::Weight, "W"),
        (Kind::Backward, "B"),
    ];

    /// The printed form, for example `SEND_F`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Forward => "F",
            Kind::Input => "I",
            Kind::Weight => "W",
            Kind::Backward => "B",
            Kind::SendForward => "SEND_F",
            Kind::RecvForward => "RECV_F",
            Kind::SendBackward => "SEND_B",
            Kind::RecvBackward => "RECV_B",
            Kind::Unshard => "UNSHARD",
            Kind::Reshard => "RESHARD",
            Kind::ReduceGrad => "REDUCE_GRAD",
            Kind::ReduceTied => "REDUCE_TIED",
        }
    }

    /// Whether the device computes: `F`, `I`, `W` or `B`.
    pub fn is_compute(self) -> bool {
        matches!(
            self,
            Kind::Forward | Kind::Input | Kind::Weight | Kind::Backward
        )
    }

    /// Whether it is `SEND_F` or `SEND_B`.
    pub fn is_send(self) -> bool {
        matches!(self, Kind::SendForward | Kind::SendBackward)
    }

    /// Whether it is `RECV_F` or `RECV_B`.
    pub fn is_recv(self) -> bool {
        matches!(self, Kind::RecvForward | Kind::RecvBackward)
    }

    /// Whether it is a send or a receive.
    pub fn is_transfer(self) -> bool {
        self.is_send() || self.is_recv()
    }

    /// Whether it yields the gradient that the stages before wait for: `I` or `B`.
    pub fn yields_input_gradient(self) -> bool {
        matches!(self, Kind::Input | Kind::Backward)
    }

    /// Whether it lets go of the stage's saved activations: `W` or `B`.
    pub fn releases_activation(self) -> bool {
        matches!(self, Kind::Weight | Kind::Backward)
    }

    /// Whether it concerns one microbatch (else the whole stage).
    pub fn has_microbatch(self) -> bool {
        self.is_compute() || self.is_transfer()
    }

    /// Whether it has another end: a transfer, or `REDUCE_TIED`.
    pub fn has_peer(self) -> bool {
        self.is_transfer() || self == Kind::ReduceTied
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One step of one rank: a kind, a stage, a microbatch, and the stage at the other end where the kind has one.
///
/// ```
/// use phalanx_parallel::pipeline::{Action, Kind};
///
/// let action: Action = "1SEND_F3".parse()?;
/// assert_eq!(action, Action::transfer(Kind::SendForward, 1, 2, 3));
/// assert_eq!(action.to_string(), "1SEND_F3");
/// // A skip connection names the other end, since it is not the neighbour in the chain.
/// let skip: Action = "1SEND_F3>4".parse()?;
/// assert_eq!((skip.stage(), skip.peer(), skip.microbatch()), (1, 4, 3));
/// # Ok::<(), phalanx_parallel::pipeline::ActionError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Action {
    stage: u16,
    microbatch: u16,
    /// The stage at the other end of a transfer or a `REDUCE_TIED`; the action's own stage elsewhere.
    peer: u16,
    kind: Kind,
}

impl Action {
    /// An `F`, `I`, `W` or `B`; the other kinds have constructors of their own.
    pub fn compute(kind: Kind, stage: u16, microbatch: u16) -> Self {
        debug_assert!(kind.is_compute(), "{kind} is not a compute action");
        Self {
            stage,
            microbatch,
            peer: stage,
            kind,
        }
    }

    /// A send from, or a receive at, `stage`; `peer` is the stage at the other end.
    pub fn transfer(kind: Kind, stage: u16, peer: u16, microbatch: u16) -> Self {
        debug_assert!(kind.is_transfer(), "{kind} is not a transfer");
        Self {
            stage,
            microbatch,
            peer,
            kind,
        }
    }

    /// An `UNSHARD`, `RESHARD` or `REDUCE_GRAD`.
    pub fn whole_stage(kind: Kind, stage: u16) -> Self {
        debug_assert!(
            !kind.has_microbatch() && !kind.has_peer(),
            "{kind} needs more than a stage"
        );
        Self {
            stage,
            microbatch: 0,
            peer: stage,
            kind,
        }
    }

    /// A `REDUCE_TIED` of the weights that `stage` shares with `peer`, which may be the same stage.
    pub fn tied(stage: u16, peer: u16) -> Self {
        Self {
            stage,
            microbatch: 0,
            peer,
            kind: Kind::ReduceTied,
        }
    }

    /// What is done.
    pub fn kind(self) -> Kind {
        self.kind
    }

    /// The stage it is done for.
    pub fn stage(self) -> usize {
        usize::from(self.stage)
    }

    /// The microbatch; 0 for kinds that concern the whole stage.
    pub fn microbatch(self) -> usize {
        usize::from(self.microbatch)
    }

    /// The stage at the other end of a transfer or a `REDUCE_TIED`; [`Action::stage`] for other kinds.
    pub fn peer(self) -> usize {
        usize::from(self.peer)
    }

    /// The action at the other end that this one pairs with; `None` for kinds without another end.
    pub fn counterpart(self) -> Option<Self> {
        let kind = match self.kind {
            Kind::SendForward => Kind::RecvForward,
            Kind::RecvForward => Kind::SendForward,
            Kind::SendBackward => Kind::RecvBackward,
            Kind::RecvBackward => Kind::SendBackward,
            Kind::ReduceTied => Kind::ReduceTied,
            _ => return None,
        };
        Some(Self {
            stage: self.peer,
            peer: self.stage,
            kind,
            ..self
        })
    }

    /// The same action for another microbatch.
    pub fn with_microbatch(self, microbatch: u16) -> Self {
        Self {
            microbatch: if self.kind.has_microbatch() {
                microbatch
            } else {
                0
            },
            ..self
        }
    }

    /// The neighbour that a transfer without a named peer goes to, where there is one.
    fn default_peer(kind: Kind, stage: u16) -> Option<u16> {
        match kind {
            Kind::SendForward | Kind::RecvBackward => stage.checked_add(1),
            Kind::RecvForward | Kind::SendBackward => stage.checked_sub(1),
            _ => Some(stage),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.stage, self.kind)?;
        if self.kind.has_microbatch() {
            write!(f, "{}", self.microbatch)?;
        }
        if Self::default_peer(self.kind, self.stage) != Some(self.peer) {
            write!(f, ">{}", self.peer)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a piece of text is not an action.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ActionError {
    /// It does not begin with a stage number.
    #[error("an action begins with the number of its stage, as in 2F0")]
    NoStage,
    /// No kind stands after the stage.
    #[error(
        "after the stage stands one of F, I, W, B, SEND_F, RECV_F, SEND_B, RECV_B, UNSHARD, \
         RESHARD, REDUCE_GRAD, REDUCE_TIED"
    )]
    NoKind,
    /// The kind needs a microbatch and has none.
    #[error("{kind} needs the number of a microbatch after it")]
    NoMicrobatch {
        /// The kind that stands alone.
        kind: Kind,
    },
    /// A number is larger than a plan can hold.
    #[error("the {what} is larger than {max}, the largest that a plan can hold", max = u16::MAX)]
    TooLarge {
        /// Which number.
        what: &'static str,
    },
    /// A receive at stage 0 (or the like) that names no other end.
    #[error("stage {stage} has no neighbour on that side, so the other end must be named")]
    NoPeer {
        /// The stage at the edge.
        stage: u16,
    },
    /// Characters after a whole action.
    #[error("nothing may follow a whole action")]
    Trailing,
}

/// Splits the leading decimal number off, checking its size.
fn number<'a>(text: &'a str, what: &'static str) -> Result<(Option<u16>, &'a str), ActionError> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() {
        return Ok((None, rest));
    }
    let value = digits.parse().map_err(|_| ActionError::TooLarge { what })?;
    Ok((Some(value), rest))
}

impl FromStr for Action {
    type Err = ActionError;

    fn from_str(text: &str) -> Result<Self, ActionError> {
        let (stage, rest) = number(text, "stage")?;
        let stage = stage.ok_or(ActionError::NoStage)?;
        let (kind, rest) = Kind::SPELLINGS
            .iter()
            .find_map(|&(kind, name)| rest.strip_prefix(name).map(|rest| (kind, rest)))
            .ok_or(ActionError::NoKind)?;
        let (microbatch, rest) = match kind.has_microbatch() {
            true => number(rest, "microbatch")?,
            false => (Some(0), rest),
        };
        let microbatch = microbatch.ok_or(ActionError::NoMicrobatch { kind })?;
        let (peer, rest) = match rest.strip_prefix('>') {
            Some(rest) if kind.has_peer() => {
                let (peer, rest) = number(rest, "peer stage")?;
                (peer.ok_or(ActionError::NoPeer { stage })?, rest)
            }
            _ => {
                let peer = Self::default_peer(kind, stage);
                (peer.ok_or(ActionError::NoPeer { stage })?, rest)
            }
        };
        match rest {
            "" => Ok(Self {
                stage,
                microbatch,
                peer,
                kind,
            }),
            _ => Err(ActionError::Trailing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_is_eight_bytes() {
        assert_eq!(size_of::<Action>(), 8);
    }

    #[test]
    fn every_kind_round_trips() {
        for text in [
            "0F0",
            "12I3",
            "1W65535",
            "65535B0",
            "1SEND_F3",
            "1RECV_F3",
            "2SEND_B0",
            "2RECV_B0",
            "0UNSHARD",
            "7RESHARD",
            "3REDUCE_GRAD",
            "1SEND_F3>4",
            "4RECV_F3>1",
            "0RECV_F1>3",
            "0REDUCE_TIED>3",
            "2REDUCE_TIED",
        ] {
            let action: Action = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(action.to_string(), text);
        }
        // The neighbour may be named, but is not printed.
        assert_eq!(
            "1SEND_F3>2".parse::<Action>().unwrap().to_string(),
            "1SEND_F3"
        );
    }

    #[test]
    fn what_is_not_an_action_says_why() {
        let why = |text: &str| text.parse::<Action>().unwrap_err();
        assert_eq!(why("F0"), ActionError::NoStage);
        assert_eq!(why(""), ActionError::NoStage);
        assert_eq!(why("0X0"), ActionError::NoKind);
        assert_eq!(
            why("0F"),
            ActionError::NoMicrobatch {
                kind: Kind::Forward
            }
        );
        assert_eq!(why("70000F0"), ActionError::TooLarge { what: "stage" });
        assert_eq!(
            why("0F99999999999999999999"),
            ActionError::TooLarge { what: "microbatch" }
        );
        assert_eq!(why("0RECV_F0"), ActionError::NoPeer { stage: 0 });
        assert_eq!(why("0F0x"), ActionError::Trailing);
        assert_eq!(why("0UNSHARD1"), ActionError::Trailing);
        assert_eq!(why("0F0>1"), ActionError::Trailing);
        assert_eq!(why("0REDUCE_GRAD>1"), ActionError::Trailing);
        assert_eq!(why("0REDUCE_TIED1"), ActionError::Trailing);
    }
}
