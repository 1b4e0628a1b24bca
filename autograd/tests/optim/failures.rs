//! Steps and clippings that fail: they change nothing, and can be repeated.

use crate::{CPU, START, gradients, slope, tensor, vals};
use phalanx_autograd::optim::{Adam, AdamConfig, Group, Optimizer, Sgd, SgdConfig, clip_grad_norm};
use phalanx_autograd::{Param, State};
use phalanx_tensor::{DType, Tensor};

#[test]
fn a_failed_step_changes_nothing_and_can_be_repeated() {
    let momentum = SgdConfig {
        lr: 0.1,
        momentum: 0.9,
        ..SgdConfig::default()
    };
    type New = fn(Vec<Param>, Group, SgdConfig) -> Box<dyn Optimizer>;
    let kinds: [New; 2] = [
        |params, group, c| Box::new(Sgd::new(params, c).unwrap().with_group(group).unwrap()),
        |params, group, _| {
            Box::new(
                Adam::new(params, AdamConfig::adamw())
                    .unwrap()
                    .with_group(group)
                    .unwrap(),
            )
        },
    ];
    for new in kinds {
        // The gradient that does not fit is that of the last parameter, in a group of its own.
        let run = |failures: bool| {
            let params: Vec<Param> = (0..3).map(|_| Param::new(tensor(&START))).collect();
            let [a, b, c] = [0, 1, 2].map(|i| &params[i]);
            let group = Group {
                lr_scale: 0.5,
                ..Group::new(vec![c.clone()])
            };
            let mut optimizer = new(params.clone(), group, momentum);
            for t in 0..4 {
                if failures {
                    let look = |optimizer: &dyn Optimizer| {
                        let state = optimizer.state().unwrap().to_bytes().unwrap();
                        (state, params.iter().map(vals).collect::<Vec<_>>())
                    };
                    let before = look(&*optimizer);
                    for last in [tensor(&[1.0]), tensor(&START).cast(DType::F32).unwrap()] {
                        let mut wrong = gradients(&[(a, &slope(t)), (b, &slope(t + 1))]);
                        wrong.insert(c, last);
                        optimizer.step(&wrong).unwrap_err();
                        assert_eq!(look(&*optimizer), before, "step {t}");
                    }
                }
                let right = [(a, &slope(t)[..]), (b, &slope(t + 1)), (c, &slope(t + 2))];
                optimizer.step(&gradients(&right)).unwrap();
            }
            (
                params.iter().map(vals).collect::<Vec<_>>(),
                optimizer.state().unwrap(),
            )
        };
        let (failed, whole) = (run(true), run(false));
        assert_eq!(failed.0, whole.0);
        let bytes = |state: &State| state.to_bytes().unwrap();
        assert_eq!(bytes(&failed.1), bytes(&whole.1));
    }
}

#[test]
fn clipping_that_fails_changes_nothing() {
    let [a, b] = [0; 2].map(|_| Param::new(tensor(&START)));
    let mut all = gradients(&[(&a, &[3.0, 4.0, 0.0])]);
    all.insert(&b, Tensor::ones([3], DType::I64, CPU).unwrap());
    clip_grad_norm(&mut all, 1.0).unwrap_err();
    all.scale(0.5).unwrap_err();
    assert_eq!(
        all.get(&a).unwrap().to_vec::<f64>().unwrap(),
        [3.0, 4.0, 0.0]
    );
}
