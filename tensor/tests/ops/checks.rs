//! Tests of what the operation tests share.

use crate::util::*;
use phalanx_tensor::{DType, Tensor};

#[test]
fn random_tensors_are_views_of_every_kind() {
    let mut rng = TestRng::new(1);
    let (mut contiguous, mut gaps, mut stretched) = (0, 0, 0);
    for _ in 0..300 {
        let shape = rng.shape(4, 5);
        let t = rng.tensor(&shape, DType::F32, (1.0, 2.0));
        assert!(values(&t).iter().all(|v| (1.0..2.0).contains(v)));
        contiguous += usize::from(t.is_contiguous());
        gaps += usize::from(!t.is_contiguous());
        stretched += usize::from(t.layout().strides().contains(&0));
    }
    assert!(
        contiguous > 50 && gaps > 50 && stretched > 10,
        "{contiguous} {gaps} {stretched}"
    );
}

#[test]
fn central_differences_find_the_slope_of_a_known_function() {
    let x = tensor_of(&[1.0, -2.0, 3.0], &[3], DType::F64);
    let cube = |t: &[Tensor]| {
        tensor_of(
            &values(&t[0]).iter().map(|v| v * v * v).collect::<Vec<_>>(),
            &[3],
            DType::F64,
        )
    };
    let grad = tensor_of(&[1.0, 0.5, -1.0], &[3], DType::F64);
    let slope = tensor_of(&[3.0, 6.0, -27.0], &[3], DType::F64);
    assert_gradient(cube, std::slice::from_ref(&x), 0, &grad, &slope, "x³");
}
