//! What is called: [`Op`] with its parameters, [`ReduceOp`] among them, and the [`Signature`] that the ranks of a
//! group must agree on, with the one place that says where two of them differ. Ground: it knows nothing of groups.

use phalanx_tensor::{DType, Shape};
use smallvec::SmallVec;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// How the tensors of all ranks become one. Applied in rank order, so that a run repeats bit for
/// bit; half types accumulate in `f32` and are rounded once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReduceOp {
    /// The sum; integers wrap around. Not of `bool`.
    Sum,
    /// The sum divided by the number of ranks; float types only.
    Avg,
    /// The product; integers wrap around. Not of `bool`.
    Product,
    /// The smallest value; NaN where any rank has NaN.
    Min,
    /// The largest value; NaN where any rank has NaN.
    Max,
    /// Bitwise and; integer types and `bool` only.
    BitAnd,
    /// Bitwise or; integer types and `bool` only.
    BitOr,
    /// Bitwise exclusive or; integer types and `bool` only.
    BitXor,
}

impl ReduceOp {
    /// Every reduction, in the order of declaration.
    pub const ALL: [ReduceOp; 8] = [
        ReduceOp::Sum,
        ReduceOp::Avg,
        ReduceOp::Product,
        ReduceOp::Min,
        ReduceOp::Max,
        ReduceOp::BitAnd,
        ReduceOp::BitOr,
        ReduceOp::BitXor,
    ];

    /// The printed name, as in `"sum"`.
    pub const fn name(self) -> &'static str {
        match self {
            ReduceOp::Sum => "sum",
            ReduceOp::Avg => "avg",
            ReduceOp::Product => "product",
            ReduceOp::Min => "min",
            ReduceOp::Max => "max",
            ReduceOp::BitAnd => "bitand",
            ReduceOp::BitOr => "bitor",
            ReduceOp::BitXor => "bitxor",
        }
    }

    /// Whether the reduction is defined for elements of this type.
    pub const fn supports(self, dtype: DType) -> bool {
        match self {
            ReduceOp::Avg => dtype.is_float(),
            ReduceOp::BitAnd | ReduceOp::BitOr | ReduceOp::BitXor => !dtype.is_float(),
            ReduceOp::Sum | ReduceOp::Product => !matches!(dtype, DType::Bool),
            ReduceOp::Min | ReduceOp::Max => true,
        }
    }
}

impl fmt::Display for ReduceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ReduceOp {
    type Err = String;

    fn from_str(s: &str) -> Result<ReduceOp, String> {
        let found = ReduceOp::ALL.into_iter().find(|op| op.name() == s);
        found.ok_or_else(|| {
            let names = ReduceOp::ALL.map(ReduceOp::name).join(", ");
            format!("`{s}` is none of {names}")
        })
    }
}

/// An operation with its parameters. Ranks count within the group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[expect(
    missing_docs,
    reason = "named as the methods of ProcessGroup and their arguments"
)]
pub enum Op {
    AllReduce(ReduceOp),
    Broadcast { root: usize },
    Reduce { op: ReduceOp, root: usize },
    AllGather,
    Gather { root: usize },
    Scatter { root: usize },
    ReduceScatter(ReduceOp),
    AllToAll,
    AllToAllV(Arc<Splits>),
    Send { destination: usize, tag: u32 },
    Recv { source: usize, tag: u32 },
    Barrier,
    Split,
}

/// How many rows go to and come from each rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Splits {
    /// Rows for each rank.
    pub send: Box<[usize]>,
    /// Rows from each rank.
    pub recv: Box<[usize]>,
}

impl Op {
    /// The method's name.
    pub const fn name(&self) -> &'static str {
        match self {
            Op::AllReduce(_) => "all_reduce",
            Op::Broadcast { .. } => "broadcast",
            Op::Reduce { .. } => "reduce",
            Op::AllGather => "all_gather",
            Op::Gather { .. } => "gather",
            Op::Scatter { .. } => "scatter",
            Op::ReduceScatter(_) => "reduce_scatter",
            Op::AllToAll => "all_to_all",
            Op::AllToAllV(_) => "all_to_all_v",
            Op::Send { .. } => "send",
            Op::Recv { .. } => "recv",
            Op::Barrier => "barrier",
            Op::Split => "split",
        }
    }

    /// The reduction, where there is one.
    pub const fn reduction(&self) -> Option<ReduceOp> {
        match self {
            Op::AllReduce(op) | Op::ReduceScatter(op) | Op::Reduce { op, .. } => Some(*op),
            _ => None,
        }
    }

    /// The root, where there is one.
    pub const fn root(&self) -> Option<usize> {
        match self {
            Op::Broadcast { root }
            | Op::Reduce { root, .. }
            | Op::Gather { root }
            | Op::Scatter { root } => Some(*root),
            _ => None,
        }
    }

    /// The tag, where this is one end of a message.
    pub const fn tag(&self) -> Option<u32> {
        match self {
            Op::Send { tag, .. } | Op::Recv { tag, .. } => Some(*tag),
            _ => None,
        }
    }

    /// Whether this is one end of a message.
    pub const fn is_message(&self) -> bool {
        matches!(self, Op::Send { .. } | Op::Recv { .. })
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Op::AllReduce(op) | Op::ReduceScatter(op) => write!(f, "({op})"),
            Op::Reduce { op, root } => write!(f, "({op}, root {root})"),
            Op::Broadcast { root } | Op::Gather { root } | Op::Scatter { root } => {
                write!(f, "(root {root})")
            }
            Op::AllToAllV(s) => write!(f, "(send {:?}, recv {:?})", s.send, s.recv),
            Op::Send { destination, tag } => write!(f, "(to {destination}, tag {tag})"),
            Op::Recv { source, tag } => write!(f, "(from {source}, tag {tag})"),
            Op::AllGather | Op::AllToAll | Op::Barrier | Op::Split => Ok(()),
        }
    }
}

/// What an engine promises of the results of its reductions: asked, not assumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promises {
    /// They are reduced in rank order: a run repeats bit for bit, whatever the sizes and the timing.
    pub rank_order: bool,
    /// `Min` and `Max` give NaN where any rank has NaN.
    pub keeps_nan: bool,
}

/// Where in a program a call stands: whose it is (a wrapper of a module, say), in which step, and which
/// part of the step (a bucket of gradients). Ranks compare it as they compare shapes, so one that is a
/// step or a part behind the others is told so, where the shapes would have agreed. Given by
/// [`ProcessGroup::labelled`](crate::ProcessGroup::labelled).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Label {
    /// The number of what calls, the same on all ranks.
    pub owner: u64,
    /// The step, as the caller counts.
    pub step: u64,
    /// The part of the step.
    pub part: u64,
    /// What the caller calls it, for errors. Ranks may have different names for it: they do not compare them (`==` does).
    pub name: Name,
}

impl Label {
    /// One without a name.
    pub const fn new(owner: u64, step: u64, part: u64) -> Label {
        Label {
            owner,
            step,
            part,
            name: Name::EMPTY,
        }
    }

    /// What ranks compare.
    pub(crate) const fn compared(&self) -> [u64; 3] {
        [self.owner, self.step, self.part]
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Label {
            owner, step, part, ..
        } = self;
        write!(f, "owner {owner}, step {step}, part {part}")?;
        match self.name.as_str() {
            "" => Ok(()),
            name => write!(f, ": {name}"),
        }
    }
}

/// A short text, held in place: it costs a call no memory of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name {
    len: u8,
    bytes: [u8; Name::MOST],
}

impl Name {
    /// The most bytes that it holds.
    pub const MOST: usize = 31;
    /// No text.
    pub const EMPTY: Name = Name {
        len: 0,
        bytes: [0; Name::MOST],
    };

    /// What is printed, cut behind the last character that has room.
    ///
    /// ```
    /// use phalanx_comm::Name;
    ///
    /// assert_eq!(Name::new(format_args!("{}F{}", 3, 2)).as_str(), "3F2");
    /// assert_eq!(Name::new("é".repeat(40)).as_str(), "é".repeat(15));
    /// ```
    pub fn new(text: impl fmt::Display) -> Name {
        struct Cut(Name);
        impl fmt::Write for Cut {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                let Cut(Name { len, bytes }) = self;
                let free = &mut bytes[usize::from(*len)..];
                let fits = text.floor_char_boundary(free.len());
                free[..fits].copy_from_slice(&text.as_bytes()[..fits]);
                *len += fits as u8; // at most MOST
                match fits == text.len() {
                    true => Ok(()),
                    false => Err(fmt::Error),
                }
            }
        }
        let mut cut = Cut(Name::EMPTY);
        // An error says that the text was cut.
        let _ = fmt::Write::write_fmt(&mut cut, format_args!("{text}"));
        cut.0
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        let text = &self.bytes[..usize::from(self.len)];
        std::str::from_utf8(text).unwrap_or_default() // made of whole characters
    }
}

impl Default for Name {
    fn default() -> Name {
        Name::EMPTY
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What the ranks of a group must agree on when they call the same collective.
///
/// Prints as `all_reduce(sum) of f32 [2, 3]`, with its label behind it where it has one.
#[derive(Debug, PartialEq, Eq)]
pub struct Signature {
    /// The operation.
    pub op: Op,
    /// Type and shape of what each rank gives, tensor by tensor; of what it gets in `scatter` and
    /// `recv`; empty where there is no tensor.
    pub tensors: SmallVec<[(DType, Shape); 1]>,
    /// Where in the program the call stands, if the program says so.
    /// Shared, so that a call without one is not longer for it.
    pub label: Option<Arc<Label>>,
    /// Of what an engine says by another one beside a call of its own: that call, which is printed in the place of this one.
    /// Whether it is there is compared; what it says is not.
    pub beside: Option<Arc<str>>,
}

/// In which respect two ranks' calls differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Difference {
    /// They called different operations.
    Operation,
    /// They asked for different reductions.
    Reduction,
    /// They named different roots.
    Root,
    /// Their element types differ.
    DType,
    /// Their shapes differ.
    Shape,
    /// One gives more tensors than the other.
    Count,
    /// One sends another number of rows than the other expects.
    Splits,
    /// The two ends of a message have different tags.
    Tag,
    /// Their [`Label`]s differ: one is in another step, or in another part of it.
    Label,
    /// The tensors of one are on a card, and the other's are in the host's memory; or they are on cards of different slots
    /// of a group that has several for each rank.
    Device,
}

impl Difference {
    /// Every difference, in the order of declaration.
    pub const ALL: [Difference; 10] = [
        Difference::Operation,
        Difference::Reduction,
        Difference::Root,
        Difference::DType,
        Difference::Shape,
        Difference::Count,
        Difference::Splits,
        Difference::Tag,
        Difference::Label,
        Difference::Device,
    ];
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Difference::Operation => "operation",
            Difference::Reduction => "reduction",
            Difference::Root => "root",
            Difference::DType => "element type",
            Difference::Shape => "shape",
            Difference::Count => "number of tensors",
            Difference::Splits => "splits",
            Difference::Tag => "tag",
            Difference::Label => "label",
            Difference::Device => "device",
        })
    }
}

impl Clone for Signature {
    fn clone(&self) -> Signature {
        Signature {
            op: self.op.clone(),
            // Of one tensor without the detour of a list: each call is kept on record.
            tensors: match &*self.tensors {
                [one] => SmallVec::from_buf([one.clone()]),
                all => all.iter().cloned().collect(),
            },
            label: self.label.clone(),
            beside: self.beside.clone(),
        }
    }
}

impl Signature {
    /// What keeps rank `a`'s call and rank `b`'s from being the same collective, or the two ends
    /// of one message.
    pub fn difference(a: (usize, &Signature), b: (usize, &Signature)) -> Option<Difference> {
        let ((a_rank, a), (b_rank, b)) = (a, b);
        // What goes beside a call on cards stands for that call.
        if a.beside.is_some() != b.beside.is_some() {
            return Some(match a.operation() == b.operation() {
                true => Difference::Device,
                false => Difference::Operation,
            });
        }
        let ends = matches!(
            (&a.op, &b.op),
            (Op::Send { .. }, Op::Recv { .. }) | (Op::Recv { .. }, Op::Send { .. })
        );
        if !ends && std::mem::discriminant(&a.op) != std::mem::discriminant(&b.op) {
            return Some(Difference::Operation);
        }
        if a.op.reduction() != b.op.reduction() {
            return Some(Difference::Reduction);
        }
        if a.op.root() != b.op.root() {
            return Some(Difference::Root);
        }
        let rows = usize::from(matches!(a.op, Op::AllToAllV(_))); // axis 0 may differ
        if a.tensors.len() != b.tensors.len() {
            return Some(Difference::Count);
        }
        for ((a_type, a_shape), (b_type, b_shape)) in a.tensors.iter().zip(&b.tensors) {
            if a_type != b_type {
                return Some(Difference::DType);
            }
            if a_shape.get(rows..) != b_shape.get(rows..) {
                return Some(Difference::Shape);
            }
        }
        if let (Op::AllToAllV(a), Op::AllToAllV(b)) = (&a.op, &b.op)
            && (a.send[b_rank] != b.recv[a_rank] || b.send[a_rank] != a.recv[b_rank])
        {
            return Some(Difference::Splits);
        }
        if a.op.tag() != b.op.tag() {
            return Some(Difference::Tag);
        }
        let label = |of: &Signature| of.label.as_deref().map(Label::compared);
        (label(a) != label(b)).then_some(Difference::Label)
    }

    /// The name of the operation, the same for both ends of a message; of what goes beside a call, that call's.
    fn operation(&self) -> &str {
        let text = self.beside.as_deref().unwrap_or(self.op.name());
        match text.split(['(', ' ']).next().unwrap_or_default() {
            "send" | "recv" => "message",
            name => name,
        }
    }

    /// Whether agreement with one rank is agreement with all: not for `all_to_all_v`, where every
    /// pair has its own number of rows.
    pub fn agrees_transitively(&self) -> bool {
        !matches!(self.op, Op::AllToAllV(_))
    }
}

/// The most tensors of a call that are printed.
const PRINTED: usize = 4;

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(call) = &self.beside {
            return f.write_str(call);
        }
        write!(f, "{}", self.op)?;
        for (at, (dtype, shape)) in self.tensors.iter().take(PRINTED).enumerate() {
            let before = if at == 0 { " of" } else { "," };
            write!(f, "{before} {dtype} {shape}")?;
        }
        match self.tensors.len() {
            0..=PRINTED => {}
            many => write!(f, " and {} more", many - PRINTED)?,
        }
        match &self.label {
            Some(label) => write!(f, " ({label})"),
            None => Ok(()),
        }
    }
}
