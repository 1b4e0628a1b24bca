//! Transfers: what goes to a card comes back, under any layout, of any size.

use crate::support::*;
use phalanx_tensor::{DType, Device, Error, Tensor};

#[test]
fn what_goes_to_a_card_comes_back() {
    let (device, _turn) = card!();
    for dtype in DType::ALL {
        for n in [0, 1, 3, 1000, 1 << 16] {
            let t = values(&[n], DType::F32, 7).cast(dtype).unwrap();
            let there = t.to_device(device).unwrap();
            assert_eq!(there.device(), device);
            let back = there.to_device(Device::cpu(1)).unwrap();
            assert_eq!(
                back.as_bytes().unwrap(),
                t.as_bytes().unwrap(),
                "{dtype} {n}"
            );
        }
    }
}

#[test]
fn more_than_a_piece_comes_back() {
    let (device, _turn) = card!();
    // Larger than a pinned buffer, and no multiple of it.
    let n = (9 << 20) / 4 + 13;
    let t = Tensor::arange(n, DType::F32, Device::cpu(0)).unwrap();
    let back = t.to_device(device).unwrap().to_vec::<f32>().unwrap();
    assert!(back == t.to_vec::<f32>().unwrap());
}

#[test]
fn views_are_copied_in_row_major_order() {
    let (device, _turn) = card!();
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::U8, DType::I64] {
        let t = values(&[5, 7, 3], DType::F32, 3).cast(dtype).unwrap();
        let there = t.to_device(device).unwrap();
        let view = |t: &Tensor| {
            let t = t.permute(&[2, 0, 1]).unwrap().narrow(1, 1, 3).unwrap();
            t.slice(2, 1..7, 2).unwrap()
        };
        let (there, here) = (view(&there), view(&t));
        assert_eq!(read(&there), read(&here), "{dtype}");
        assert_eq!(read(&there.contiguous().unwrap()), read(&here), "{dtype}");
        let row = there.select(0, 1).unwrap().broadcast_to([4, 3, 3]).unwrap();
        assert_eq!(
            read(&row),
            read(&here.select(0, 1).unwrap().broadcast_to([4, 3, 3]).unwrap())
        );
    }
}

/// A kernel walks over eight axes that do not merge, and no more.
#[test]
fn a_view_may_have_eight_axes() {
    let (device, _turn) = card!();
    for rank in [8, 9] {
        let t = values(&vec![2; rank], DType::F32, 4);
        let there = t.to_device(device).unwrap();
        let axes: Vec<isize> = (0..rank as isize).rev().collect();
        let turned = there.permute(&axes).unwrap().contiguous();
        match rank {
            8 => assert_eq!(read(&turned.unwrap()), read(&t.permute(&axes).unwrap())),
            _ => assert!(matches!(turned, Err(Error::InvalidShape { .. }))),
        }
    }
}

#[test]
fn pieces_are_written_in_place() {
    let (device, _turn) = card!();
    let mut flat = values(&[10], DType::F32, 1).to_device(device).unwrap();
    let piece = values(&[2, 2], DType::F32, 2);
    flat.write_at(3, &piece.t().unwrap()).unwrap();
    flat.write_at(
        8,
        &piece.narrow(0, 1, 1).unwrap().to_device(device).unwrap(),
    )
    .unwrap();
    let (old, new) = (read(&values(&[10], DType::F32, 1)), read(&piece));
    let expected = [
        old[0], old[1], old[2], new[0], new[2], new[1], new[3], old[7], new[2], new[3],
    ];
    assert_eq!(read(&flat), expected);
}

#[test]
fn one_element_is_read_by_item() {
    let (device, _turn) = card!();
    let t = Tensor::scalar(i64::MAX, device).unwrap();
    assert_eq!(t.item::<i64>().unwrap(), i64::MAX);
    let t = values(&[4, 4], DType::F32, 1).to_device(device).unwrap();
    assert!(t.as_slice::<f32>().is_err() && t.as_bytes().is_err());
    assert!(t.clone().make_mut::<f32>().is_err());
    assert!(
        !format!("{t:?}").contains("0."),
        "Debug reads a card: {t:?}"
    );
}
