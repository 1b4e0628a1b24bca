//! Communication under backward: the first all-reduce of the first step is enqueued while the sweep still runs, most of
//! the sweep's kernels need not wait for it, and the thread that trains waits for nothing.

use phalanx_autograd::Tape;
use phalanx_autograd::nn::{Factory, Linear, Module, Relu, Sequential, mse};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_comm::{LaunchConfig, ReduceOp, launch};
use phalanx_parallel::{Ddp, DdpConfig, Result};
use phalanx_tensor::{DType, Device, Tensor};
use std::sync::Barrier;
use std::time::Duration;

use crate::counts::{Count, counted, counted_here};
use crate::support::{cards, read, values};
use crate::trace::{Operation, Trace};

const RANKS: usize = 2;
const LAYERS: usize = 8;
const WIDTH: usize = 32;

fn model(device: Device) -> Result<Sequential> {
    let mut f = Factory::new(device, 11);
    let mut model = Sequential::new();
    for _ in 0..LAYERS {
        model = model.with(Linear::new(WIDTH, WIDTH, &mut f)?).with(Relu);
    }
    Ok(model)
}

/// A step without other ranks, by which the kernels are loaded: loading waits for what is under way.
fn alone(device: Device, x: &Tensor, y: &Tensor) -> Result<()> {
    let model = model(device)?;
    let tape = Tape::new();
    let [x, y] = [x, y].map(|t| tape.constant(t.clone()));
    let loss = mse(&model.forward(&tape, &x)?, &y)?;
    let gradients = tape.backward(&loss)?;
    Sgd::new(model.parameters(), SgdConfig::default())?.step(&gradients)?;
    Ok(())
}

/// What waits: also copies that wait by themselves.
const WAITS: [Count; 2] = [Count::Waits, Count::PageableCopies];

#[test]
fn all_reduces_run_under_the_first_sweep() {
    let Some(_turn) = cards("all_reduces_run_under_the_first_sweep", RANKS) else {
        return;
    };
    let Some(trace) = Trace::find() else {
        eprintln!("SKIPPED: all_reduces_run_under_the_first_sweep: a real card keeps no record");
        return;
    };
    let met = Barrier::new(RANKS);
    let config = LaunchConfig::new(RANKS).device(Device::cuda(0));
    let traced = launch(config, |group| -> Result<Vec<Operation>> {
        let device = group.device();
        let config = DdpConfig {
            // A layer for each bucket.
            first_bucket_bytes: Some(1),
            bucket_cap_bytes: Some(1),
            in_place_bytes: Some(usize::MAX),
            ..DdpConfig::default()
        };
        let x = values(&[16, WIDTH], DType::F32, 1).to_device(device)?;
        let y = values(&[16, WIDTH], DType::F32, 2).to_device(device)?;
        alone(device, &x, &y)?;
        let ddp = Ddp::new(model(device)?, group, config)?;
        let mut sgd = Sgd::new(ddp.parameters(), SgdConfig::default())?;
        let tape = Tape::new();
        let loss = mse(&ddp.forward(&tape, &tape.constant(x))?, &tape.constant(y))?;
        device.synchronize()?;
        met.wait();
        let all = WAITS.map(counted);
        if met.wait().is_leader() {
            trace.start();
        }
        met.wait();
        let mine = WAITS.map(counted_here);
        let asked = counted_here(Count::Queries);
        let gradients = ddp.backward(&tape, &loss)?;
        // The other rank may still be in its sweep: what it does is not judged by this rank's record.
        met.wait();
        let operations = trace.end();
        met.wait();
        sgd.step(&gradients)?;
        assert_eq!(WAITS.map(counted_here), mine, "the rank's thread");
        // Before the kernel that fills buckets is loaded, it looks whether a collective is under way: there is none yet.
        assert!(counted_here(Count::Queries) <= asked.map(|n| n + 1));
        met.wait();
        // The watch over what is under way asks, and waits for nothing.
        assert_eq!(WAITS.map(counted), all);
        met.wait();
        device.synchronize()?;
        Ok(operations)
    });
    let operations = traced.unwrap().remove(0);
    for card in 0..RANKS as u64 {
        let on_card: Vec<_> = operations.iter().filter(|o| o.card == card).collect();
        let is_reduction = |o: &&&Operation| o.name.starts_with("ncclAllReduce");
        let first = on_card.iter().find(is_reduction);
        let first = first.unwrap_or_else(|| panic!("no all-reduce on card {card}: {on_card:#?}"));
        // Kernels and products of the sweep: the memory's business and the waits for others count for nothing.
        let is_work = |o: &&&Operation| {
            !["wait", "allocation", "free", "copy", "set"].contains(&o.name.as_str())
                && o.stream != first.stream
        };
        let later: Vec<_> = on_card
            .iter()
            .filter(is_work)
            .filter(|o| o.index > first.index)
            .collect();
        assert!(later.len() >= 2 * (LAYERS - 1), "{on_card:#?}");
        // The call is two operations: it begins, and it ends.
        let end = on_card.iter().filter(is_reduction).nth(1).unwrap();
        let free = later.iter().filter(|o| !trace.is_before(end, o)).count();
        println!(
            "card {card}: {free} of {} later kernels do not wait",
            later.len()
        );
        assert!(2 * free >= later.len(), "{free} of {}", later.len());
        // Nor does it wait for them.
        let awaited = later.iter().filter(|o| trace.is_before(o, first)).count();
        assert_eq!(awaited, 0);
    }
}

/// A kernel that is loaded while a collective is under way: the thread waits for that first, since loading may hold up the
/// rank that is still missing. Where that one never comes, the group fails, and nothing hangs.
#[test]
fn code_is_loaded_when_no_collective_is_under_way() {
    const TEST: &str = "code_is_loaded_when_no_collective_is_under_way";
    let Some(_turn) = cards(TEST, RANKS) else {
        return;
    };
    if counted(Count::Waits).is_none() {
        eprintln!("SKIPPED: {TEST}: a real card counts no waits");
        return;
    }
    // No other test of this program has anything of these types.
    for (dtype, comes) in [(DType::I32, true), (DType::U8, false)] {
        let config = LaunchConfig::new(RANKS).device(Device::cuda(0));
        let ends = launch(config, |group| -> Result<()> {
            let device = group.device();
            let t = Tensor::ones([1000], DType::F32, device)?;
            let host = Tensor::from_vec(vec![1i64; 8], [8], Device::cpu(0))?;
            let few = host.cast(dtype)?.to_device(device)?;
            group.all_reduce(t.clone(), ReduceOp::Sum)?.wait()?;
            device.synchronize()?;
            if group.rank() == 1 {
                std::thread::sleep(Duration::from_millis(300));
                if comes {
                    group.all_reduce(t, ReduceOp::Sum)?.wait()?;
                }
                return Ok(());
            }
            let sum = group.all_reduce(t, ReduceOp::Sum)?.wait()?;
            let before = counted_here(Count::Waits).unwrap();
            let more = few.add(&few)?;
            assert_eq!(counted_here(Count::Waits).unwrap(), before + 1);
            assert_eq!(read(&more), [2.0; 8]);
            // It is over by now, one way or the other.
            sum.to_vec::<f32>().map(drop).map_err(Into::into)
        });
        match (comes, ends) {
            (true, Ok(_)) => {}
            (false, Err(error)) => {
                let said = error.to_string();
                assert!(said.contains("rank 1 returned without the call"), "{said}");
            }
            (_, ends) => panic!("{ends:?}"),
        }
    }
}
