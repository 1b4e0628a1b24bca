//! Parameters of half types: gradients and states in `f32`.

use crate::{START, slope, tensor};
use phalanx_autograd::optim::{Adam, AdamConfig, Optimizer, Sgd, SgdConfig, clip_grad_norm};
use phalanx_autograd::{Gradients, Param};
use phalanx_tensor::DType;

#[test]
fn half_parameters_step_by_gradients_in_f32() {
    for dtype in [DType::BF16, DType::F16] {
        let half = |values: &[f64]| tensor(values).cast(dtype).unwrap();
        type New = fn(Vec<Param>) -> Box<dyn Optimizer>;
        let kinds: [New; 2] = [
            |params| {
                Box::new(
                    Sgd::new(
                        params,
                        SgdConfig {
                            lr: 0.1,
                            momentum: 0.9,
                            ..SgdConfig::default()
                        },
                    )
                    .unwrap(),
                )
            },
            |params| Box::new(Adam::new(params, AdamConfig::adam()).unwrap()),
        ];
        for new in kinds {
            // A gradient in the parameter's own type steps as its value in f32.
            let run = |grads: DType| {
                let w = Param::new(half(&START));
                let mut optimizer = new(vec![w.clone()]);
                for t in 0..3 {
                    let mut all = Gradients::new();
                    all.insert(&w, half(&slope(t)).cast(grads).unwrap());
                    let norm = clip_grad_norm(&mut all, 1e3).unwrap();
                    assert!(norm.item::<f64>().unwrap() > 1.0);
                    optimizer.step(&all).unwrap();
                }
                let state = optimizer.state().unwrap();
                let of_w = state
                    .iter()
                    .filter(|(name, t)| t.shape() == w.shape() && name.starts_with('0'));
                assert!(of_w.map(|(_, t)| t.dtype()).all(|d| d == DType::F32));
                assert_eq!(w.dtype(), dtype);
                let mut again = new(vec![w.clone()]);
                again.load_state(optimizer.state().unwrap()).unwrap();
                w.read(|t| t.cast(DType::F64).unwrap().to_vec::<f64>().unwrap())
            };
            assert_eq!(run(DType::F32), run(dtype));
        }
        // What the parameter's type cannot hold of a gradient still counts.
        let w = Param::new(half(&[0.0]));
        let mut sgd = Sgd::new(
            vec![w.clone()],
            SgdConfig {
                lr: 1.0,
                momentum: 0.5,
                ..SgdConfig::default()
            },
        )
        .unwrap();
        let mut all = Gradients::new();
        let fine = 1.0 + 0.5f64.powi(14);
        all.insert(&w, tensor(&[fine]).cast(DType::F32).unwrap());
        sgd.step(&all).unwrap();
        let momentum = sgd
            .state()
            .unwrap()
            .get("0.momentum_buffer")
            .unwrap()
            .item::<f64>()
            .unwrap();
        assert_eq!(momentum, fine);
    }
}
