//! Values, views, copies and memory accounts, through the public interface.

mod level;

use phalanx_tensor::{DType, Device, Error, Shape, Tensor};
use proptest::prelude::*;

fn iota(shape: &[usize], device: Device) -> Tensor {
    let n = shape.iter().product();
    Tensor::arange(n, DType::I64, device)
        .unwrap()
        .reshape(shape)
        .unwrap()
}

#[test]
fn a_clone_is_never_changed_behind_its_holders_back() {
    let mut a = Tensor::from_vec(vec![1.0f32, 2.0], [2], Device::cpu(0)).unwrap();
    let b = a.clone();
    assert!(!a.is_unique());
    a.make_mut::<f32>().unwrap()[0] = 9.0;
    assert_eq!(
        (a.to_vec::<f32>().unwrap(), b.to_vec::<f32>().unwrap()),
        (vec![9.0, 2.0], vec![1.0, 2.0])
    );
    let before = a.address();
    assert!(a.is_unique());
    a.make_mut::<f32>().unwrap()[0] = 8.0;
    assert_eq!(a.address(), before, "a unique holder writes in place");
}

#[test]
fn writing_through_a_view_leaves_the_rest_alone() {
    let base = iota(&[2, 3], Device::cpu(0));
    let mut view = base.narrow(1, 1, 2).unwrap();
    view.make_mut::<i64>().unwrap().fill(-1);
    assert_eq!(base.to_vec::<i64>().unwrap(), [0, 1, 2, 3, 4, 5]);
    let mut tail = base.narrow(0, 1, 1).unwrap();
    drop(base);
    tail.make_mut::<i64>().unwrap()[0] = 7;
    assert_eq!(
        tail.to_vec::<i64>().unwrap(),
        [7, 4, 5],
        "in place, at the view's offset"
    );
}

#[test]
fn the_account_is_exact_and_the_pool_reuses() {
    let device = Device::cpu(71);
    let a = Tensor::zeros([1000], DType::F32, device).unwrap();
    let b = a.transpose(0, 0).unwrap();
    assert_eq!(device.memory().unwrap().live, 4000, "views take nothing");
    drop(a);
    assert_eq!(
        device.memory().unwrap().live,
        4000,
        "a view keeps the storage"
    );
    drop(b);
    let before = device.memory().unwrap();
    assert_eq!((before.live, before.peak), (0, 4000));
    for _ in 0..100 {
        let _t = Tensor::zeros([10, 99], DType::F32, device).unwrap();
    }
    let after = device.memory().unwrap();
    assert_eq!(after.system_allocations, before.system_allocations);
    device.reset_peak().unwrap();
    device.empty_cache().unwrap();
    let end = device.memory().unwrap();
    assert_eq!((end.live, end.peak, end.reserved), (0, 0, 0));
}

#[test]
fn impossible_requests_are_errors() {
    let e = Tensor::zeros([usize::MAX, 2], DType::F64, Device::cpu(0)).unwrap_err();
    assert!(matches!(e, Error::OutOfMemory { op: "zeros", .. }), "{e}");
    let e = Tensor::zeros([2], DType::F32, Device::cuda(1)).unwrap_err();
    assert!(e.to_string().contains("cuda:1"), "{e}");
    let e = Tensor::from_vec(vec![0u8; 3], [2, 2], Device::cpu(0)).unwrap_err();
    assert!(
        e.to_string().contains("[2, 2]") && e.to_string().contains('3'),
        "{e}"
    );
    let t = Tensor::zeros([2, 3], DType::F32, Device::cpu(0)).unwrap();
    assert!(matches!(
        t.as_slice::<f64>().unwrap_err(),
        Error::DTypeMismatch { .. }
    ));
    assert!(matches!(
        t.t().unwrap().as_bytes().unwrap_err(),
        Error::NotContiguous { .. }
    ));
    assert!(matches!(
        t.reshape([5]).unwrap_err(),
        Error::ShapeMismatch { op: "reshape", .. }
    ));
    assert!(t.item::<f64>().is_err());
    let one = Tensor::ones([1, 1], DType::U8, Device::cpu(0)).unwrap();
    let large = one.broadcast_to([1 << 31, 1 << 31]).unwrap();
    assert_eq!(large.numel(), 1 << 62);
    let e = one.broadcast_to([1 << 33, 1 << 33]).unwrap_err();
    assert!(e.to_string().contains("[8589934592, 8589934592]"), "{e}");
}

#[test]
fn devices_have_their_own_accounts() {
    let (a, b) = (Device::cpu(81), Device::cpu(82));
    let t = Tensor::ones([8], DType::U8, a).unwrap();
    let u = t.to_device(b).unwrap();
    assert_eq!((a.memory().unwrap().live, b.memory().unwrap().live), (8, 8));
    drop(t);
    assert_eq!((a.memory().unwrap().live, b.memory().unwrap().live), (0, 8));
    assert_eq!(u.to_vec::<u8>().unwrap(), [1; 8]);
}

/// A random view of a random tensor, with the values that it must show.
fn random_view() -> impl Strategy<Value = (Tensor, Vec<i64>, Vec<usize>)> {
    let shape = prop::collection::vec(0usize..5, 1..5);
    let edits = prop::collection::vec((0u8..5, any::<u32>(), any::<u32>()), 0..6);
    (shape, edits).prop_map(|(shape, edits)| {
        let mut tensor = iota(&shape, Device::cpu(0));
        // The reference: strides and offset by hand, on plain vectors.
        let mut dims = shape.clone();
        let mut index: Vec<Vec<usize>> = dims.iter().map(|&d| (0..d).collect()).collect();
        let mut weight: Vec<usize> = (0..dims.len())
            .map(|i| shape[i + 1..].iter().product())
            .collect();
        for (kind, a, b) in edits {
            if dims.is_empty() {
                break;
            }
            let (i, j) = (a as usize % dims.len(), b as usize % dims.len());
            match kind {
                0 => {
                    tensor = tensor.transpose(i as isize, j as isize).unwrap();
                    dims.swap(i, j);
                    index.swap(i, j);
                    weight.swap(i, j);
                }
                1 => {
                    let start = b as usize % (dims[i] + 1);
                    let len = (a as usize / 7) % (dims[i] - start + 1);
                    tensor = tensor.narrow(i as isize, start, len).unwrap();
                    index[i] = index[i][start..start + len].to_vec();
                    dims[i] = len;
                }
                2 => {
                    let step = 1 + b as usize % 3;
                    tensor = tensor.slice(i as isize, 0..dims[i], step).unwrap();
                    index[i] = index[i].iter().copied().step_by(step).collect();
                    dims[i] = index[i].len();
                }
                3 => {
                    tensor = tensor.unsqueeze(i as isize).unwrap();
                    dims.insert(i, 1);
                    index.insert(i, vec![0]);
                    weight.insert(i, 0);
                }
                _ if dims[i] == 1 => {
                    let n = 1 + b as usize % 3;
                    dims[i] = n;
                    index[i] = vec![index[i][0]; n];
                    tensor = tensor.broadcast_to(dims.clone()).unwrap();
                }
                _ => {}
            }
        }
        let mut want = vec![0i64];
        for (ix, w) in index.iter().zip(&weight) {
            want = want
                .iter()
                .flat_map(|&v| ix.iter().map(move |&i| v + (i * w) as i64))
                .collect();
        }
        (tensor, want, dims)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn views_show_what_a_plain_loop_shows((view, want, dims) in random_view(), split in any::<prop::sample::Index>()) {
        prop_assert_eq!(view.dims(), &dims[..]);
        prop_assert_eq!(&view.to_vec::<i64>().unwrap(), &want);
        let flat = view.reshape([view.numel()]).unwrap();
        prop_assert_eq!(&flat.to_vec::<i64>().unwrap(), &want);
        if !dims.is_empty() {
            // Joining and splitting axes keeps the order, with or without a copy.
            let at = split.index(dims.len());
            let joined = view.flatten(at as isize, dims.len() as isize - 1).unwrap();
            prop_assert_eq!(&joined.to_vec::<i64>().unwrap(), &want);
            let back = joined.reshape(Shape::from(dims.clone())).unwrap();
            prop_assert_eq!(&back.to_vec::<i64>().unwrap(), &want);
        }
    }
}
