//! [`Claim`]: who collects the gradients of a parameter.
//!
//! A parallel wrapper keeps replicas equal only if every gradient of its parameters goes through it. A
//! claim makes the mistakes visible that would train the replicas apart in silence: a plain
//! [`Tape::backward`] where the wrapper's was meant, a sweep of one wrapper into another's parameters,
//! and a parameter that the wrapped module never showed.

use crate::error::{Error, Result};
use crate::param::Param;
use crate::sweep::Backward;
use crate::tape::{Kind, NodeId, Tape};
use phalanx_tensor::Shape;
use smallvec::SmallVec;
use std::fmt;
use std::sync::{Arc, Weak};

/// What a [`Claim`] says of the one that made it, in its errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// What it is: `"a Ddp"`.
    pub name: &'static str,
    /// What to do where a sweep without the claim reaches one of its parameters.
    pub outside: &'static str,
    /// What to do where a sweep with the claim reaches a parameter that nobody claims.
    pub unclaimed: &'static str,
}

/// The right to collect the gradients of some parameters: only a sweep that holds the claim
/// ([`Backward::claims`]) may make them. It ends when it is dropped.
///
/// ```
/// use phalanx_autograd::{Backward, Claim, Claims, Error, Holder, Param, Tape};
/// use phalanx_tensor::{Device, Tensor};
///
/// let w = Param::new(Tensor::scalar(3.0f32, Device::cpu(0))?);
/// let holder = Holder { name: "a wrapper", outside: "call its backward", unclaimed: "" };
/// let claim = Claim::new(holder, [&w])?;
///
/// let tape = Tape::new();
/// let loss = tape.leaf(&w).square()?;
/// let error = tape.backward(&loss).unwrap_err(); // the recording stays
/// assert!(matches!(error, Error::Claimed { op: "square", .. }), "{error}");
/// let gradients = tape.sweep(Backward {
///     roots: &[(&loss, None)],
///     claims: Claims { held: &[&claim], beside: &[] },
///     ..Backward::default()
/// })?;
/// assert_eq!(gradients.get(&w).unwrap().to_vec::<f32>()?, [6.0]);
///
/// drop(claim);
/// tape.backward(&tape.leaf(&w).square()?)?; // the parameter is free again
/// # Ok::<(), phalanx_autograd::Error>(())
/// ```
pub struct Claim(Arc<Holder>);

/// What a parameter knows of its claim; dead once the claim was dropped.
pub(crate) type ClaimRef = Weak<Holder>;

impl Claim {
    /// Claims `params`, all or none of them.
    ///
    /// # Errors
    /// [`Error::ClaimedTwice`] where one is claimed already.
    pub fn new<'p>(holder: Holder, params: impl IntoIterator<Item = &'p Param>) -> Result<Claim> {
        let claim = Claim(Arc::new(holder));
        for param in params {
            // What was claimed before the one that is refused becomes free with `claim`.
            param.claim(&claim.0).map_err(|other| Error::ClaimedTwice {
                id: param.id(),
                shape: param.shape().clone(),
                holder: other.name,
            })?;
        }
        Ok(claim)
    }

    fn is(&self, other: &Arc<Holder>) -> bool {
        Arc::ptr_eq(&self.0, other)
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Claim of {}", self.0.name)
    }
}

/// Whose parameters a sweep may reach.
#[derive(Debug, Clone, Copy, Default)]
pub struct Claims<'a> {
    /// The claims that the sweep holds. None: it may reach what nobody claims.
    pub held: &'a [&'a Claim],
    /// Parameters without a claim that a sweep which holds claims may reach all the same.
    pub beside: &'a [Param],
}

/// Why a sweep may not reach a parameter.
enum Trespass {
    Claimed(Arc<Holder>),
    Unclaimed(Holder),
}

impl Claims<'_> {
    fn trespass(&self, param: &Param) -> Option<Trespass> {
        match param.holder() {
            Some(holder) if self.held.iter().any(|claim| claim.is(&holder)) => None,
            Some(holder) => Some(Trespass::Claimed(holder)),
            None if self.beside.iter().any(|p| p.id() == param.id()) => None,
            None => self.held.first().map(|claim| Trespass::Unclaimed(*claim.0)),
        }
    }
}

impl Tape {
    /// Whether a sweep may reach what it would: the check that [`sweep`](Tape::sweep) begins with, for
    /// whoever has to know before it does something else. Reads the recording, changes nothing.
    ///
    /// A sweep to chosen inputs ([`Backward::inputs`]) makes no gradients of parameters but of those
    /// that it names or starts at, and may pass through others.
    ///
    /// # Errors
    /// [`Error::Claimed`], [`Error::Unclaimed`] for the parameter that was used first;
    /// [`Error::NothingToDifferentiate`], [`Error::TapeMismatch`], [`Error::Consumed`].
    pub fn check_claims(&self, how: &Backward<'_>) -> Result<()> {
        if self.is_replaying() {
            return Ok(()); // it was checked where it was recorded
        }
        let claims = how.claims;
        let named = how.inputs.map(|inputs| {
            let roots = how.roots.iter().map(|(root, _)| *root);
            let all = inputs.iter().copied().chain(roots);
            let all = all.filter_map(|var| Some(var.node()?.id.index()));
            all.collect::<SmallVec<[usize; 4]>>()
        });
        let makes = |index: usize| named.as_ref().is_none_or(|named| named.contains(&index));
        // Almost always nothing on the tape is another's, and what the roots reach need not be known.
        let suspects = self.with_nodes(|nodes| {
            nodes.iter().any(
                |node| matches!(&node.kind, Kind::Param(param) if claims.trespass(param).is_some()),
            )
        });
        if !suspects {
            return Ok(());
        }
        let reached = self.reach(how.roots)?;
        let found = self.with_nodes(|nodes| {
            let reached = nodes.iter().enumerate().zip(&reached);
            let mut reached = reached.filter_map(|(node, &reached)| reached.then_some(node));
            reached.find_map(|(index, node)| match &node.kind {
                _ if !makes(index) => None,
                Kind::Param(param) => Some((
                    claims.trespass(param)?,
                    param.clone(),
                    first_user(nodes, index),
                )),
                _ => None,
            })
        });
        let Some((trespass, param, op)) = found else {
            return Ok(());
        };
        let (id, shape): (_, Shape) = (param.id(), param.shape().clone());
        Err(match trespass {
            Trespass::Claimed(holder) => Error::Claimed {
                id,
                shape,
                op,
                holder: holder.name,
                advice: holder.outside,
            },
            Trespass::Unclaimed(holder) => Error::Unclaimed {
                id,
                shape,
                op,
                holder: holder.name,
                advice: holder.unclaimed,
            },
        })
    }
}

/// The first operation that used the parameter of this node.
fn first_user(nodes: &[crate::tape::Node], index: usize) -> &'static str {
    let uses = |node: &&crate::tape::Node| node.inputs.contains(&NodeId::at(index));
    match nodes[index..].iter().find(uses).map(|node| &node.kind) {
        Some(Kind::Op(vjp)) => vjp.name(),
        _ => "leaf",
    }
}
