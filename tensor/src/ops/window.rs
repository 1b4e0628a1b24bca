//! One axis of a sliding window, for convolutions and poolings. Pure.

/// How far a window can slide: the pixels of an axis with padding at both ends, less those that the
/// `taps` of a window reach over, `dilation` apart. Or why no window fits.
///
/// Windows at a stride of `s` come to `slack / s + 1`.
pub(super) fn slack(
    size: usize,
    padding: usize,
    dilation: usize,
    taps: usize,
) -> Result<usize, String> {
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
pub(super) fn padded(size: usize, padding: usize) -> Option<usize> {
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
}
