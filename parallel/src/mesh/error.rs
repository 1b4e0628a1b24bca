//! Why ranks make no mesh, or have no such axis.

use std::fmt;

/// Why ranks make no mesh, or have no such axis.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MeshError {
    /// The sizes do not multiply to the number of ranks.
    #[error("a mesh of {axes}: {}, but the group has {ranks} {}", places(sizes), match ranks {
        1 => "rank",
        _ => "ranks",
    })]
    WrongSize {
        /// The axes with their sizes.
        axes: String,
        /// The sizes.
        sizes: Vec<usize>,
        /// The ranks of the group.
        ranks: usize,
    },
    /// A mesh without axes.
    #[error("a mesh has at least one axis")]
    NoAxes,
    /// An axis of no ranks.
    #[error("a mesh of {axes}: the size of `{axis}` is 0, and must be at least 1")]
    ZeroSize {
        /// The axes with their sizes.
        axes: String,
        /// The axis.
        axis: String,
    },
    /// An axis without a name.
    #[error("a mesh of {axes}: axis {place} has no name")]
    NoName {
        /// The axes with their sizes.
        axes: String,
        /// Which axis, from 0.
        place: usize,
    },
    /// Two axes of one name.
    #[error("a mesh of {axes}: two axes are called `{axis}`")]
    SameName {
        /// The axes with their sizes.
        axes: String,
        /// The name.
        axis: String,
    },
    /// An axis that the mesh does not have.
    #[error("there is no axis `{axis}`; the mesh has {axes}")]
    UnknownAxis {
        /// What was asked for.
        axis: String,
        /// The axes with their sizes.
        axes: String,
    },
    /// An axis that was named twice for one group.
    #[error("the axis `{axis}` is named twice; the mesh has {axes}")]
    NamedTwice {
        /// The axis.
        axis: String,
        /// The axes with their sizes.
        axes: String,
    },
    /// A group over no axis at all.
    #[error("a group goes over at least one axis; the mesh has {axes}")]
    NoneNamed {
        /// The axes with their sizes.
        axes: String,
    },
}

/// `2 × 3 = 6 places`.
fn places(sizes: &[usize]) -> String {
    let factors: Vec<String> = sizes.iter().map(usize::to_string).collect();
    let product = sizes
        .iter()
        .try_fold(1usize, |n, &size| n.checked_mul(size));
    let product = product.map_or("too many places to count".into(), |n| match n {
        1 => "1 place".into(),
        n => format!("{n} places"),
    });
    match &factors[..] {
        [_] => product,
        _ => format!("{} = {product}", factors.join(" × ")),
    }
}

/// A `main` that returns an error prints its `Debug`: a derived one would hide the sentence.
impl fmt::Debug for MeshError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
