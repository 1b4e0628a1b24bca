//! Which arguments are refused.

use super::*;
use phalanx_tensor::Device;
use std::time::Duration;

/// Sizes that come from arguments are refused by name before anybody allocates for them.
#[test]
fn shapes_beyond_all_memory_are_refused() {
    let me = Membership {
        rank: 1,
        world_ranks: [0, 1, 2].into(),
        name: "world".into(),
        device: Device::cpu(0),
        deadline: Duration::from_secs(1),
    };
    let (most, f32) = (isize::MAX as usize, DType::F32);
    // Empty tensors, one of which takes nothing; three of which nobody can address.
    let empty = || Tensor::zeros([0, most / 4], f32, me.device).unwrap();
    let rows = || Tensor::zeros([0, most / 8], f32, me.device).unwrap();
    let wide: Shape = [0, most / 4 + 1].into();
    let long: Shape = [most].into();
    let cases = [
        ("all_gather", all_gather(&me, empty())),
        ("gather", gather(&me, empty(), 1)),
        ("gather", gather(&me, empty(), 0)),
        ("scatter", scatter(&me, None, wide.clone(), f32, 0)),
        ("scatter", scatter(&me, None, long.clone(), f32, 0)),
        ("recv", recv(&me, wide, f32, 0, 0)),
        ("recv", recv(&me, long, f32, 0, 0)),
        (
            "all_to_all_v",
            all_to_all_v(&me, rows(), &[0; 3], &[3, 0, 0]),
        ),
    ];
    for (op, got) in cases {
        let e = got.unwrap_err();
        assert!(
            matches!(e, Error::InvalidShape { rank: 1, .. }),
            "{op}: {e}"
        );
        assert!(e.to_string().starts_with(op), "{op}: {e}");
    }
    assert!(all_to_all_v(&me, rows(), &[0; 3], &[2, 0, 0]).is_ok());
    assert!(recv(&me, [most].into(), DType::U8, 0, 0).is_ok());
}
