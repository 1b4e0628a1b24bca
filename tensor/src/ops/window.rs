//! One axis of a sliding window, for convolutions and poolings. Pure.

/// The longest axis with its padding: no sum or product of a few of the numbers of an [`Axis`]
/// overflows.
const LONGEST: usize = isize::MAX as usize / 8;

/// A window that walks along one axis, checked.
///
/// Invariants: `kernel`, `stride`, `dilation` and `out` are at least 1; `inp + 2·pad`, the window's
/// reach `dilation·(kernel − 1) + 1` and the stride are at most [`LONGEST`]; every window begins and
/// ends in the padded axis: `(out − 1)·stride + reach ≤ inp + 2·pad`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    pub inp: usize,
    pub out: usize,
    pub kernel: usize,
    pub stride: usize,
    pub pad: usize,
    pub dilation: usize,
}

impl Axis {
    /// The windows of `kernel` taps, `dilation` apart, at every `stride`-th place of an axis of
    /// `inp` elements padded by `pad` at both ends; all but `inp` and `pad` at least 1. Or why no
    /// window fits.
    pub(super) fn new(
        inp: usize,
        pad: usize,
        kernel: usize,
        dilation: usize,
        stride: usize,
    ) -> Result<Axis, String> {
        let slack = slack(inp, pad, dilation, kernel)?;
        let Some(padded) = padded(inp, pad).filter(|&padded| padded <= LONGEST) else {
            return Err(format!(
                "{inp} pixels padded by {pad} are beyond all memory"
            ));
        };
        Ok(Axis {
            inp,
            out: slack / stride + 1,
            kernel,
            // A longer step also leaves the axis at once, and one tap is at no distance from others.
            stride: stride.min(padded),
            pad,
            dilation: if kernel == 1 { 1 } else { dilation },
        })
    }

    /// How far the window can slide.
    pub(super) fn slack(&self) -> usize {
        self.inp + 2 * self.pad - (self.dilation * (self.kernel - 1) + 1)
    }
}

/// How far a window can slide: the pixels of an axis with padding at both ends, less those that the
/// `taps` of a window reach over, `dilation` apart. Or why no window fits.
///
/// Windows at a stride of `s` come to `slack / s + 1`.
fn slack(size: usize, padding: usize, dilation: usize, taps: usize) -> Result<usize, String> {
    let reach = dilation
        .checked_mul(taps - 1)
        .and_then(|last| last.checked_add(1));
    let Some((padded, reach)) = padded(size, padding).zip(reach) else {
        return Err(format!(
            "{taps} taps, {dilation} apart, over {size} pixels padded by {padding} are beyond all memory"
        ));
    };
    padded.checked_sub(reach).ok_or_else(|| {
        format!("the kernel reaches over {reach} pixels, the padded input has {padded}")
    })
}

/// The pixels of an axis with padding at both ends, if they can be counted.
fn padded(size: usize, padding: usize) -> Option<usize> {
    padding.checked_mul(2)?.checked_add(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_slide_as_far_as_the_padding() {
        assert_eq!(slack(28, 1, 1, 3), Ok(27));
        assert_eq!(slack(5, 0, 2, 3), Ok(0));
        assert!(slack(4, 0, 2, 3).unwrap_err().contains("reaches over 5"));
    }

    #[test]
    fn sizes_that_wrap_around_are_refused() {
        for (size, padding, dilation, taps) in [
            (10, 0, usize::MAX / 3, 4),
            (10, usize::MAX / 2 + 1, 1, 1),
            (usize::MAX, 1, 1, 1),
            (10, 0, usize::MAX, 2),
        ] {
            let reason = slack(size, padding, dilation, taps).unwrap_err();
            assert!(reason.contains("beyond"), "{reason}");
        }
    }

    #[test]
    fn steps_beyond_the_axis_are_one_step() {
        for stride in [9, 10, 1 << 60, usize::MAX] {
            let axis = Axis::new(5, 2, 1, usize::MAX, stride).unwrap();
            assert_eq!((axis.out, axis.stride, axis.dilation), (1, 9, 1));
            assert_eq!(axis.slack(), 8);
        }
        assert_eq!(Axis::new(5, 2, 3, 2, 2).unwrap().out, 3);
        for (inp, pad) in [(isize::MAX as usize, 0), (1, isize::MAX as usize / 16 + 1)] {
            let reason = Axis::new(inp, pad, 1, 1, 1).unwrap_err();
            assert!(reason.contains("beyond"), "{reason}");
        }
    }
}
