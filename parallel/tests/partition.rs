//! Cuts against every possible cut.

use phalanx_parallel::partition::*;
use phalanx_parallel::pipeline::*;

#[path = "support/rng.rs"]
mod rng;
use rng::Rng;

struct Case {
    layers: Vec<Layer>,
    devices: Vec<Device>,
    plan: Schedule,
}

fn random_case(rng: &mut Rng, most_layers: usize) -> Case {
    let n = 1 + rng.below(most_layers);
    let p = 1 + rng.below(n.min(5));
    let m = 1 + rng.below(8);
    let layer = |rng: &mut Rng| Layer {
        forward: rng.between(0.5, 4.0),
        input: rng.between(0.5, 4.0),
        weight: rng.between(0.0, 4.0),
        parameters: rng.below(100) as u64,
        activation: rng.below(40) as u64,
        boundary: rng.below(50) as u64,
    };
    let layers: Vec<Layer> = (0..n).map(|_| layer(rng)).collect();
    let whole: u64 = layers
        .iter()
        .map(|l| l.parameters + l.activation * m as u64)
        .sum();
    let uneven = rng.below(2) == 0;
    let device = |rng: &mut Rng| Device {
        speed: if uneven { rng.between(0.5, 2.0) } else { 1.0 },
        memory: match rng.below(3) {
            0 => u64::MAX,
            // Often too little, often enough.
            _ => whole / (2 * p as u64) + rng.below(whole as usize / p + 1) as u64,
        },
        bandwidth: if rng.below(2) == 0 {
            f64::INFINITY
        } else {
            rng.between(5.0, 50.0)
        },
    };
    let devices: Vec<Device> = (0..p).map(|_| device(rng)).collect();
    let named = *rng.pick(&[Named::Gpipe, Named::OneFOneB, Named::ZbH1]);
    Case {
        layers,
        devices,
        plan: named.schedule(p, 1, m).unwrap(),
    }
}

/// What a cut means, written out once more: memory per device, bottleneck, simulated step.
fn judge(case: &Case, starts: &[usize]) -> (Vec<u64>, f64, f64) {
    let p = case.devices.len();
    let live = validate(&case.plan, &Rules::default()).unwrap().peak_live;
    let (mut memory, mut bottleneck, mut stages) = (Vec::new(), 0.0f64, Vec::new());
    for d in 0..p {
        let end = if d + 1 < p {
            starts[d + 1]
        } else {
            case.layers.len()
        };
        let layers = &case.layers[starts[d]..end];
        let device = case.devices[d];
        let sum = |f: fn(&Layer) -> f64| layers.iter().map(f).sum::<f64>() / device.speed;
        let (f, i, w) = (sum(|l| l.forward), sum(|l| l.input), sum(|l| l.weight));
        let sent = if d + 1 < p {
            layers[layers.len() - 1].boundary as f64
        } else {
            0.0
        };
        let transfer = sent / device.bandwidth;
        let bytes = |f: fn(&Layer) -> u64| layers.iter().map(f).sum::<u64>();
        memory.push(bytes(|l| l.parameters) + bytes(|l| l.activation) * live[d] as u64);
        bottleneck = bottleneck.max(f + i + w).max(transfer);
        stages.push(StageCosts {
            transfer,
            ..StageCosts::new(f, i, w)
        });
    }
    let time = simulate(&case.plan, &Costs { stages }, Transfers::Overlapped)
        .unwrap()
        .makespan;
    (memory, bottleneck, time)
}

/// Every way to begin `p` stages in `n` layers.
fn all_cuts(n: usize, p: usize) -> Vec<Vec<usize>> {
    (0u32..1 << (n - 1))
        .filter(|bits| bits.count_ones() as usize == p - 1)
        .map(|bits| {
            (0..n)
                .filter(|&l| l == 0 || bits >> (l - 1) & 1 == 1)
                .collect()
        })
        .collect()
}

#[test]
fn the_cut_is_the_best_of_all() {
    let mut rng = Rng(3);
    let (mut cut, mut impossible) = (0, 0);
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs();
    for _ in 0..1_000 {
        let case = random_case(&mut rng, 9);
        let limit = |d: usize| case.devices[d].memory;
        let fits = |memory: &[u64]| memory.iter().enumerate().all(|(d, &b)| b <= limit(d));
        let judged: Vec<_> = all_cuts(case.layers.len(), case.devices.len())
            .iter()
            .map(|starts| judge(&case, starts))
            .collect();
        let least = |which: fn(&(Vec<u64>, f64, f64)) -> f64| {
            judged
                .iter()
                .filter(|j| fits(&j.0))
                .map(which)
                .fold(f64::INFINITY, f64::min)
        };
        let (bottleneck, time) = (least(|j| j.1), least(|j| j.2));
        match partition(&case.layers, &case.devices, &case.plan) {
            Ok(found) => {
                let (memory, own_bottleneck, own_time) = judge(&case, &found.starts);
                assert!(fits(&memory) && memory == found.memory);
                assert!(close(own_time, found.makespan) && close(own_time, time));
                assert!(close(own_bottleneck, found.bottleneck));
                let starts = least_bottleneck(&case.layers, &case.devices, &case.plan).unwrap();
                let (memory, exact, _) = judge(&case, &starts);
                assert!(
                    fits(&memory) && close(exact, bottleneck),
                    "{exact} {bottleneck}"
                );
                cut += 1;
            }
            Err(PartitionError::Memory {
                device,
                needed,
                limit: had,
                missing,
            }) => {
                assert_eq!(bottleneck, f64::INFINITY, "there is a cut that fits");
                // The least that must be added to every device.
                let lack = |memory: &[u64]| {
                    let each = memory
                        .iter()
                        .enumerate()
                        .map(|(d, &b)| b.saturating_sub(limit(d)));
                    each.max().unwrap()
                };
                assert_eq!(missing, judged.iter().map(|j| lack(&j.0)).min().unwrap());
                assert_eq!((had, needed), (limit(device), limit(device) + missing));
                impossible += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(
        cut > 500 && impossible > 100,
        "{cut} cut, {impossible} impossible"
    );
}

#[test]
fn larger_cases_are_no_worse_than_their_bottleneck() {
    let mut rng = Rng(4);
    for _ in 0..20 {
        let Case { layers, .. } = loop {
            let case = random_case(&mut rng, 60);
            if case.layers.len() > 40 {
                break case;
            }
        };
        let devices = [Device::default(); 8];
        let plan = Named::OneFOneB.schedule(8, 1, 16).unwrap();
        let case = Case {
            layers,
            devices: devices.to_vec(),
            plan,
        };
        let found = partition(&case.layers, &case.devices, &case.plan).unwrap();
        let starts = least_bottleneck(&case.layers, &case.devices, &case.plan).unwrap();
        let (_, _, before) = judge(&case, &starts);
        let (_, _, after) = judge(&case, &found.starts);
        assert!(after <= before * (1.0 + 1e-9));
        assert!((after - found.makespan).abs() <= 1e-9 * after);
    }
}

#[test]
fn what_makes_no_sense_is_said() {
    let layer = Layer {
        forward: 1.0,
        input: 1.0,
        weight: 1.0,
        ..Layer::default()
    };
    let plan = Named::OneFOneB.schedule(2, 1, 4).unwrap();
    let says = |layers: &[Layer], devices: &[Device], plan: &Schedule, words: &str| {
        let error = partition(layers, devices, plan).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    let device = Device::default();
    says(
        &[layer],
        &[device; 2],
        &plan,
        "1 layers cannot be cut into a stage for each of 2 devices",
    );
    says(
        &[layer; 3],
        &[device; 3],
        &plan,
        "the plan has 2 stages on 2 ranks; for 3 devices",
    );
    let slow = Device {
        speed: 0.0,
        ..device
    };
    says(
        &[layer; 2],
        &[device, slow],
        &plan,
        "the speed of device 1 is 0, which is not more than 0",
    );
    let never = Layer {
        forward: f64::NAN,
        ..layer
    };
    says(
        &[layer, never],
        &[device; 2],
        &plan,
        "the forward of layer 1 is NaN, which is not a time",
    );
    let endless = Layer {
        forward: f64::INFINITY,
        ..layer
    };
    says(
        &[layer, endless],
        &[device; 2],
        &plan,
        "the forward of layer 1 is inf, which is not finite",
    );
    let infinite = Device {
        speed: f64::INFINITY,
        ..device
    };
    says(
        &[layer; 2],
        &[device, infinite],
        &plan,
        "the speed of device 1 is inf, which is not finite",
    );
    // Each is finite, and their sum is not.
    let long = Layer {
        forward: f64::MAX,
        ..layer
    };
    says(
        &[long; 2],
        &[device; 2],
        &plan,
        "the time up to the end of layer 1 is inf, which is not finite on the slowest device",
    );
    let small = Device {
        memory: 10,
        ..device
    };
    let heavy = Layer {
        parameters: 8,
        activation: 3,
        ..layer
    };
    // Two in flight on the first device: 8 + 2 · 3.
    says(
        &[heavy; 2],
        &[small; 2],
        &plan,
        "device 0 must hold 14 bytes, and its limit is 10; with 4 bytes more on each device",
    );
}
