//! [`View`]: how a kernel walks over a tensor that is not contiguous.

use crate::cpu::strided::Walk;
use crate::{Error, Layout, Result, Shape, Tensor};

/// Axes of a view in a kernel, at most, after those that can be merged were.
pub(crate) const AXES: usize = 8;

/// Extents and strides, innermost axis first: `View` of the prelude. The address of the first element
/// goes beside it.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct View {
    extents: [i64; AXES],
    strides: [i64; AXES],
    rank: i64,
}

impl View {
    /// A tensor's view, stretched to `shape`, to which it broadcasts.
    ///
    /// # Errors
    /// As [`new`](View::new).
    pub(crate) fn stretched(op: &'static str, t: &Tensor, shape: &Shape) -> Result<View> {
        View::new(op, &t.layout().broadcast_to(op, shape)?)
    }

    /// # Errors
    /// [`Error::InvalidShape`] for a view with more axes than a kernel walks over.
    pub(crate) fn new(op: &'static str, layout: &Layout) -> Result<View> {
        let axes = Walk::new([layout]).axes;
        if axes.len() > AXES {
            return Err(Error::InvalidShape {
                op,
                shape: layout.shape().clone(),
                reason: format!("a card walks over {AXES} axes that do not merge, at most"),
            });
        }
        let mut view = View {
            extents: [1; AXES],
            strides: [0; AXES],
            rank: axes.len() as i64,
        };
        for (i, (extent, [stride])) in axes.iter().rev().enumerate() {
            view.extents[i] = *extent as i64;
            view.strides[i] = *stride as i64;
        }
        Ok(view)
    }
}
