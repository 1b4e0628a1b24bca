//! Communication starts while the sweep still runs, in the first step already.

use crate::model::{Mlp, mse, on_cpus, on_ranks};
use phalanx_autograd::nn::Module;
use phalanx_autograd::{Error as AutogradError, Grads, Tape, Var, Vjp};
use phalanx_comm::ProcessGroup;
use phalanx_parallel::ddp::backward_all;
use phalanx_parallel::{CommHook, Compress, Ddp, DdpConfig, TraceEvent};
use phalanx_tensor::{DType, Tensor};
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

#[test]
fn the_first_bucket_leaves_before_the_sweep_ends() {
    let traces = on_ranks(2, |group| {
        let device = group.device();
        let model = Mlp::new(&[8, 64, 64, 64, 4], DType::F32, device, 1);
        let config = DdpConfig {
            first_bucket_bytes: Some(1024),
            bucket_cap_bytes: Some(4096),
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

#[test]
fn a_step_of_all_ranks_is_a_chrome_trace() {
    is_a_chrome_trace(None);
    is_a_chrome_trace(Some(Arc::new(Compress::Bf16)));
}

/// A backward through two wrappers is another reducer's step.
#[test]
fn a_step_of_two_wrappers_is_on_the_page() {
    let pages = on_ranks(2, |group| {
        let device = group.device();
        let wrapped = |seed| {
            let model = Mlp::new(&[4, 4], DType::F32, device, seed);
            let config = DdpConfig {
                trace: true,
                ..Default::default()
            };
            Ddp::new(model, group.clone(), config)
        };
        let (first, second) = (wrapped(1)?, wrapped(2)?);
        let tape = Tape::new();
        let x = tape.constant(Tensor::ones([2, 4], DType::F32, device)?);
        let y = second.forward(&tape, &first.forward(&tape, &x)?)?;
        backward_all(&[&first, &second], &tape, &y.square()?.mean_all()?)?;
        Ok([first.chrome_trace()?, second.chrome_trace()?])
    });
    for page in pages.iter().flatten() {
        // The parameters of both, on both ranks, though they have the same names.
        assert_eq!(page.matches(r#""cat":"gradient""#).count(), 8, "{page}");
    }
}

fn is_a_chrome_trace(hook: Option<Arc<dyn CommHook>>) {
    let pages = on_ranks(2, |group| {
        let device = group.device();
        let model = Mlp::new(&[8, 64, 64, 4], DType::F32, device, 1);
        let config = DdpConfig {
            first_bucket_bytes: Some(1024),
            bucket_cap_bytes: Some(4096),
            trace: true,
            hook: hook.clone(),
            ..Default::default()
        };
        let ddp = Ddp::new(model, group.clone(), config)?;
        let before = ddp.chrome_trace()?; // of no step
        let tape = Tape::new();
        // The ranks do not have the same.
        let x = tape.constant(Tensor::ones([16 << group.rank(), 8], DType::F32, device)?);
        let loss = ddp.forward(&tape, &x)?.square()?.mean_all()?;
        ddp.backward(&tape, &loss)?;
        let buckets = ddp.buckets().map_or(0, |buckets| buckets.len());
        Ok((before, ddp.chrome_trace()?, buckets, device.is_cpu()))
    });
    assert_eq!(pages[0].1, pages[1].1);
    let (before, page, buckets, is_cpu) = &pages[0];
    let events = |page: &str| {
        let page: serde_json::Value = serde_json::from_str(page).unwrap();
        page["traceEvents"].as_array().unwrap().clone()
    };
    assert!(events(before).iter().all(|event| event["ph"] == "M"));
    let events = events(page);
    let numbers = events.iter().filter(|event| event["ph"] == "b");
    let numbers: HashSet<u64> = numbers.map(|event| event["id"].as_u64().unwrap()).collect();
    assert_eq!(numbers.len(), 2 * buckets, "{page}");
    for rank in 0..2 {
        let of = |phase: &str, kind: &str| -> Vec<&serde_json::Value> {
            let is = |event: &&serde_json::Value| {
                event["pid"] == rank && event["ph"] == phase && event["cat"] == kind
            };
            events.iter().filter(is).collect()
        };
        let time = |event: &serde_json::Value| event["ts"].as_f64().unwrap();
        assert_eq!(of("i", "gradient").len(), 6, "{page}");
        let sweep = of("X", "sweep")[0]["dur"].as_f64().unwrap();
        assert!(of("i", "gradient").iter().all(|event| time(event) <= sweep));
        let (begins, ends) = (of("b", "bucket"), of("e", "bucket"));
        assert!(*buckets > 2 && begins.len() == *buckets && ends.len() == *buckets);
        let lasts = |at: usize| time(begins[at]) <= time(ends[at]);
        assert!((0..*buckets).all(lasts), "{page}");
        assert!(time(begins[0]) < sweep, "{page}");
        // A card carries them out one after the other, and none before its gradients are there.
        let card = of("X", "collective");
        assert_eq!(card.len(), if *is_cpu { 0 } else { *buckets });
        let end = |event: &serde_json::Value| time(event) + event["dur"].as_f64().unwrap();
        assert!(
            card.windows(2)
                .all(|pair| end(pair[0]) <= time(pair[1]) + 1e-3),
            "{page}"
        );
        let takes_time = |event: &&serde_json::Value| event["dur"].as_f64().unwrap() > 0.0;
        assert!(card.iter().all(takes_time), "{page}");
        // … nor before it was asked for.
        let is_asked = |at: usize| time(begins[at]) <= end(card[at]);
        assert!((0..card.len()).all(is_asked), "{page}");
    }
}

/// The identity, at whose backward all ranks meet.
struct Meet(Arc<dyn ProcessGroup>);

impl fmt::Debug for Meet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meet")
    }
}

impl Vjp for Meet {
    fn name(&self) -> &'static str {
        "meet"
    }

    fn backward(&self, grad: Tensor, _: &[bool]) -> phalanx_autograd::Result<Grads> {
        let met = self.0.barrier().and_then(|work| work.wait());
        met.map_err(AutogradError::other)?;
        Ok([Some(grad)].into_iter().collect())
    }

    fn saved_bytes(&self) -> usize {
        0
    }
}

#[test]
fn large_buckets_are_reduced_before_the_sweep_ends() {
    if !on_cpus(
        "large_buckets_are_reduced_before_the_sweep_ends",
        "nobody lends a hand",
    ) {
        return;
    }
    reduces_early(None);
}

#[test]
fn compressed_ones_are_too() {
    if !on_cpus("compressed_ones_are_too", "nobody lends a hand") {
        return;
    }
    reduces_early(Some(Arc::new(Compress::Bf16)));
}

fn reduces_early(hook: Option<Arc<dyn CommHook>>) {
    const WIDTH: usize = 64; // a weight has 8 KiB and more: its last issuer leaves it to be shared
    let traces = on_ranks(2, |group| {
        let device = group.device();
        let model = Mlp::new(&[WIDTH; 6], DType::F32, device, 1);
        let config = DdpConfig {
            in_place_bytes: Some(1), // a bucket for each parameter
            trace: true,
            hook: hook.clone(),
            ..Default::default()
        };
        let ddp = Ddp::new(model, Arc::clone(&group), config)?;
        let tape = Tape::new();
        let mut x = tape.constant(Tensor::ones([4, WIDTH], DType::F32, device)?);
        for layer in &ddp.module().0 {
            x = layer.forward(&tape, &x)?;
            // So that no rank is through with its sweep before another has begun.
            let meet = |_: &[bool]| Meet(Arc::clone(&group));
            x = Var::from_vjp(&tape, &[&x], x.value().clone(), meet)?;
        }
        ddp.backward(&tape, &x.square()?.mean_all()?)?;
        let weights: Vec<bool> = ddp
            .buckets()
            .unwrap()
            .iter()
            .map(|b| b.bytes() > 4096)
            .collect();
        Ok((ddp.trace(), weights))
    });
    for (trace, is_weight) in traces {
        let events = trace.events().iter().map(|(_, event)| event);
        let during = events.clone().take_while(|e| **e != TraceEvent::SweepEnded);
        let reduced = |e: &TraceEvent| match e {
            TraceEvent::Reduced(b) => Some(*b),
            _ => None,
        };
        let early = during.filter_map(reduced).filter(|&b| is_weight[b]).count();
        assert!(early >= 2, "{early} weights were reduced:\n{trace}");
        // Each bucket once, and in order.
        let all: Vec<usize> = events.filter_map(reduced).collect();
        assert_eq!(all, (0..is_weight.len()).collect::<Vec<_>>(), "{trace}");
    }
}
