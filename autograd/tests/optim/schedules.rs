//! Learning rates that change from step to step.

use super::*;

#[test]
fn schedules_give_pytorchs_factors() {
    let at = |s: Schedule, steps: &[u64]| {
        let factor = |&t: &u64| s.factor(t).unwrap();
        steps.iter().map(factor).collect::<Vec<_>>()
    };
    close(&at(Schedule::Constant, &[0, 9]), &[1.0, 1.0]);
    let step = Schedule::Step {
        every: 3,
        gamma: 0.5,
    };
    close(
        &at(step, &[0, 2, 3, 5, 6, 9]),
        &[1.0, 1.0, 0.5, 0.5, 0.25, 0.125],
    );
    let multi = Schedule::MultiStep {
        at: vec![2, 5],
        gamma: 0.1,
    };
    close(
        &at(multi, &[0, 1, 2, 4, 5, 50]),
        &[1.0, 1.0, 0.1, 0.1, 0.01, 0.01],
    );
    let linear = Schedule::Linear { steps: 4, end: 0.2 };
    close(&at(linear, &[0, 1, 2, 4, 9]), &[1.0, 0.8, 0.6, 0.2, 0.2]);
    let cosine = Schedule::Cosine { steps: 4, end: 0.0 };
    let half = 0.5 * (1.0 + 0.5f64.sqrt());
    close(
        &at(cosine.clone(), &[0, 1, 2, 3, 4, 5]),
        &[1.0, half, 0.5, 1.0 - half, 0.0, 0.0],
    );
    let warm = cosine.after_warmup(4);
    close(
        &at(warm, &[0, 1, 3, 4, 6, 8]),
        &[0.25, 0.5, 1.0, 1.0, 0.5, 0.0],
    );
    // torch.optim.lr_scheduler.OneCycleLR(max_lr=1, total_steps=10, pct_start=0.3): rises over
    // steps 0 to 2, falls over steps 2 to 9.
    let cycle = Schedule::OneCycle {
        steps: 10,
        rise: 0.3,
        div: 25.0,
        final_div: 1e4,
    };
    let got = at(cycle, &[0, 1, 2, 9, 20]);
    close(&got, &[0.04, 0.52, 1.0, 4e-6, 4e-6]);
    let mid = Schedule::OneCycle {
        steps: 9,
        rise: 1.0 / 3.0,
        div: 25.0,
        final_div: 1e4,
    }
    .factor(5)
    .unwrap();
    close(&[mid], &[(1.0 + 4e-6) / 2.0]);
}

/// A learning rate that is on the device gives the bits of one that the program has, in every group,
/// and stays out of what is saved.
#[test]
fn a_learning_rate_may_be_on_the_device() {
    type New = fn(Vec<Param>) -> Box<dyn Optimizer>;
    let sgd: New = |params| {
        let config = SgdConfig {
            momentum: 0.9,
            weight_decay: 0.01,
            ..SgdConfig::default()
        };
        Box::new(Sgd::new(params, config).unwrap())
    };
    let adam: New = |params| {
        let peculiar = Group {
            lr_scale: 0.5,
            ..Group::new(vec![params[1].clone()])
        };
        let adam = Adam::new(params, AdamConfig::adamw()).unwrap();
        Box::new(adam.with_group(peculiar).unwrap())
    };
    for new in [sgd, adam] {
        let run = |on_device: bool| {
            let params = [Param::new(tensor(&START)), Param::new(tensor(&START[1..]))];
            let mut optimizer = new(params.to_vec());
            for (t, lr) in [0.25, 0.5, 0.125].into_iter().enumerate() {
                let slope = slope(t);
                let grads = gradients(&[(&params[0], &slope), (&params[1], &slope[..2])]);
                if on_device {
                    let lr = Tensor::scalar(lr, CPU).unwrap();
                    optimizer.step_with_lr(&grads, (&lr).into()).unwrap();
                    assert_eq!(optimizer.lr(), 1e-3);
                } else {
                    optimizer.set_lr(lr).unwrap();
                    optimizer.step(&grads).unwrap();
                }
            }
            let grads = gradients(&[(&params[0], &START)]);
            let before = vals(&params[0]);
            for lr in [-1.0, f64::NAN] {
                optimizer.step_with_lr(&grads, lr.into()).unwrap_err();
            }
            let two = tensor(&[1.0, 2.0]);
            optimizer.step_with_lr(&grads, (&two).into()).unwrap_err();
            assert_eq!(vals(&params[0]), before);
            params.map(|p| vals(&p))
        };
        assert_eq!(run(true), run(false));
    }
}
