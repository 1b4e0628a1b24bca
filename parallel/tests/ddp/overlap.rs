//! Communication starts while the sweep still runs, in the first step already.

use crate::model::{Mlp, mse, on_ranks};
use phalanx_autograd::Tape;
use phalanx_autograd::nn::Module;
use phalanx_parallel::{Ddp, DdpConfig, TraceEvent};
use phalanx_tensor::{DType, Device, Tensor};

#[test]
fn the_first_bucket_leaves_before_the_sweep_ends() {
    let traces = on_ranks(2, |group| {
        let device = Device::cpu(group.rank());
        let model = Mlp::new(&[8, 64, 64, 64, 4], DType::F32, device, 1);
        let config = DdpConfig {
            first_bucket_bytes: 1024,
            bucket_cap_bytes: 4096,
            trace: true,
            ..Default::default()
        };
        let ddp = Ddp::new(model, group, config)?;
        let tape = Tape::new();
        let x = tape.constant(Tensor::ones([16, 8], DType::F32, device)?);
        let y = tape.constant(Tensor::zeros([16, 4], DType::F32, device)?);
        let loss = mse(&ddp.forward(&tape, &x)?, &y)?;
        ddp.backward(&tape, &loss)?; // the first step
        Ok(ddp.trace())
    });
    for trace in traces {
        println!("{trace}");
        let at = |wanted: &TraceEvent| {
            trace
                .events()
                .iter()
                .position(|(_, e)| e == wanted)
                .unwrap()
        };
        let (started, ended) = (at(&TraceEvent::Started(0)), at(&TraceEvent::SweepEnded));
        let ready_later = |(_, e): &&(_, TraceEvent)| matches!(e, TraceEvent::Ready(_));
        let still_to_come = trace.events()[started..ended]
            .iter()
            .filter(ready_later)
            .count();
        assert!(
            still_to_come >= 4,
            "{still_to_come} gradients were still to come:\n{trace}"
        );
        // Buckets leave in the order of the plan.
        let order = trace.events().iter().filter_map(|(_, e)| match e {
            TraceEvent::Started(b) => Some(*b),
            _ => None,
        });
        assert!(order.enumerate().all(|(i, b)| i == b), "{trace}");
        assert!(trace.events().windows(2).all(|w| w[0].0 <= w[1].0));
    }
}
