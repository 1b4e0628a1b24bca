//! The global norm of lists of tensors, and their multiplication by one number.

use crate::util::*;
use phalanx_tensor::ops::optim::*;
use phalanx_tensor::*;

#[test]
fn the_global_norm_spans_the_list_and_scaling_reaches_all_of_it() {
    let mut rng = TestRng::new(34);
    for dtype in FLOATS {
        let mut list: Vec<Tensor> = [&[5, 7][..], &[], &[100_000], &[0]]
            .iter()
            .map(|shape| rng.tensor(shape, dtype, (-1.0, 1.0)))
            .collect();
        let plain: f64 = list.iter().flat_map(values).map(|v| v * v).sum();
        let norm = norm_of(&list);
        assert!((norm - plain.sqrt()).abs() < 1e-12 * norm);
        let expected: Vec<f64> = values(&list[0]).iter().map(|v| v * 0.5).collect();
        scale(&mut list, 0.5).unwrap();
        assert_close(&list[0], &[5, 7], &expected, 0.0, "scale");
        assert!((norm_of(&list) - 0.5 * norm).abs() < 1e-6);
    }
    assert_eq!(norm_of([]), 0.0);
    let large = tensor_of(&[1e30, 1e30], &[2], DType::F32);
    assert!(norm_of([&large]) < 2e30, "squares do not overflow f32");
}

pub fn norm_of<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> f64 {
    let norm = global_norm(tensors).unwrap();
    assert_eq!((norm.rank(), norm.dtype()), (0, DType::F64));
    norm.item().unwrap()
}

#[test]
fn norm_and_factor_stay_on_the_devices() {
    let on = |device, value| Tensor::full([3], value, DType::F32, device).unwrap();
    let (first, second) = (device(), Device::cpu(3));
    let mut list = [on(first, 2.0), on(second, 4.0), on(first, 4.0)];
    let norm = global_norm(&list).unwrap();
    assert_eq!(norm.device(), first);
    assert_eq!(norm.item::<f64>().unwrap(), 108f64.sqrt());
    for dtype in FLOATS {
        // The second element of a view, on a third device.
        let numbers = tensor_of(&[9.0, 0.5], &[2], dtype);
        let half = numbers.narrow(0, 1, 1).unwrap();
        let half = half.to_device(Device::cpu(5)).unwrap();
        scale(&mut list, &half).unwrap();
        scale(&mut list, 2.0).unwrap();
    }
    scale(&mut list, &tensor_of(&[0.5], &[], DType::F64)).unwrap();
    let got = list.each_ref().map(|t| (t.device(), values(t)[2]));
    assert_eq!(got, [(first, 1.0), (second, 2.0), (first, 2.0)]);
    let ints = tensor_of(&[2.0], &[], DType::I64);
    let e = scale(&mut list, &ints).unwrap_err();
    assert!(
        matches!(e, Error::UnsupportedDType { op: "scale", .. }),
        "{e}"
    );
    let e = scale(&mut list, &on(first, 1.0)).unwrap_err();
    let reason = "a number must have exactly one element";
    assert!(e.to_string().ends_with(reason), "{e}");
    assert_eq!(values(&list[0]), [1.0; 3], "left alone");
}
