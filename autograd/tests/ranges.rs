//! Numbers out of their range, refused where optimizers and schedules take them.

use phalanx_autograd::optim::{Adam, AdamConfig, Group, Optimizer, Schedule, Sgd, SgdConfig};
use phalanx_autograd::{Error, Param};
use phalanx_tensor::{Device, Tensor};

const CPU: Device = Device::cpu(0);

#[test]
fn numbers_out_of_their_range_are_refused_where_they_come_in() {
    fn refused<T>(result: phalanx_autograd::Result<T>, what: &str) {
        let e = result.err().expect("it was taken");
        assert!(matches!(&e, Error::InvalidArgument { .. }), "{e}");
        assert!(e.to_string().contains(what), "{e}");
    }
    let w = Param::new(Tensor::scalar(1.0f64, CPU).unwrap());
    let sgd = |config| Sgd::new(vec![w.clone()], config);
    let base = SgdConfig::default();
    refused(sgd(SgdConfig { lr: -1.0, ..base }), "Sgd::new: lr is -1");
    let momentum = 5.0;
    refused(sgd(SgdConfig { momentum, ..base }), "momentum is 5");
    let nesterov = true;
    refused(sgd(SgdConfig { nesterov, ..base }), "nesterov needs");
    let adam = |config| Adam::new(vec![w.clone()], config);
    let base = AdamConfig::adamw();
    let lr = f64::NAN;
    refused(adam(AdamConfig { lr, ..base }), "Adam::new: lr is NaN");
    let betas = [0.9, 1.0];
    refused(adam(AdamConfig { betas, ..base }), "betas[1] is 1");
    let weight_decay = -0.1;
    refused(
        adam(AdamConfig {
            weight_decay,
            ..base
        }),
        "weight_decay",
    );
    let eps = f64::INFINITY;
    refused(adam(AdamConfig { eps, ..base }), "eps is inf");

    let group = |lr_scale, weight_decay| Group {
        lr_scale,
        weight_decay,
        ..Group::new(vec![w.clone()])
    };
    let fresh = || Sgd::new(vec![w.clone()], SgdConfig::default()).unwrap();
    refused(fresh().with_group(group(-1.0, None)), "lr_scale is -1");
    let e = fresh().with_group(group(1.0, Some(f64::NAN)));
    refused(e, "weight_decay is NaN");
    let adam = Adam::new(vec![w.clone()], AdamConfig::adam()).unwrap();
    refused(adam.with_group(group(-1.0, None)), "lr_scale is -1");

    let adam = Adam::new(vec![w.clone()], AdamConfig::adam()).unwrap();
    for mut optimizer in [Box::new(fresh()) as Box<dyn Optimizer>, Box::new(adam)] {
        let before = optimizer.lr();
        for lr in [-0.1, f64::NAN, f64::INFINITY] {
            refused(optimizer.set_lr(lr), "set_lr: lr is");
            let mut state = optimizer.state().unwrap();
            state.insert("lr", Tensor::scalar(lr, CPU).unwrap());
            let e = optimizer.load_state(state).unwrap_err();
            assert!(matches!(&e, Error::Format { .. }), "{e}");
            assert!(e.to_string().contains("`lr` is"), "{e}");
        }
        assert_eq!(optimizer.lr(), before);
        optimizer.set_lr(0.0).unwrap();
    }
}

#[test]
fn schedules_of_impossible_numbers_are_refused() {
    let cycle = |steps, rise, div, final_div| Schedule::OneCycle {
        steps,
        rise,
        div,
        final_div,
    };
    let impossible = [
        Schedule::Step {
            every: 1,
            gamma: -0.5,
        },
        Schedule::MultiStep {
            at: vec![1],
            gamma: f64::NAN,
        },
        Schedule::Linear {
            steps: 4,
            end: f64::INFINITY,
        },
        Schedule::Cosine {
            steps: 4,
            end: -0.1,
        },
        cycle(0, 0.3, 25.0, 1e4),
        cycle(10, 1.5, 25.0, 1e4),
        cycle(10, f64::NAN, 25.0, 1e4),
        cycle(10, 0.3, 0.0, 1e4),
        cycle(10, 0.3, 25.0, f64::INFINITY),
    ];
    for schedule in impossible {
        for schedule in [schedule.clone(), schedule.after_warmup(3)] {
            let e = schedule.factor(0).unwrap_err();
            assert!(matches!(e, Error::InvalidArgument { .. }), "{schedule:?}");
        }
    }
}
