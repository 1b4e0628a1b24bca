//! What a model and its optimizer keep stays where it is, on any device: while they train, while
//! somebody holds a snapshot, and when a state is loaded. Each test program that includes this file
//! says by `place` where it runs.

use crate::place;
use phalanx_autograd::nn::{BatchNorm2d, Factory, Linear, Module, Sequential, cross_entropy};
use phalanx_autograd::optim::{Adam, AdamConfig, Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{Error, State, Tape};
use phalanx_tensor::{DType, Device, MemoryStats, Rng, Tensor};
use std::collections::BTreeMap;

/// An optimizer, and where its state lies.
trait Placed: Optimizer {
    fn addresses(&self) -> Vec<u64>;
}

impl Placed for Sgd {
    fn addresses(&self) -> Vec<u64> {
        self.kept().map(Tensor::address).collect()
    }
}

impl Placed for Adam {
    fn addresses(&self) -> Vec<u64> {
        self.kept().map(Tensor::address).collect()
    }
}

fn of_module(module: &dyn Module) -> Vec<u64> {
    let (params, buffers) = (module.named_parameters(), module.named_buffers());
    let params = params.iter().map(|(_, p)| p.read(Tensor::address));
    let buffers = buffers.iter().map(|(_, b)| b.read(Tensor::address));
    params.chain(buffers).collect()
}

type Bytes = BTreeMap<String, Vec<u8>>;

/// The elements of a tensor, wherever it is.
fn elements(t: &Tensor) -> Vec<u8> {
    let here = t.to_device(Device::cpu(0)).unwrap();
    here.as_bytes().unwrap().to_vec()
}

fn bytes(state: &State) -> Bytes {
    let all = state.iter();
    all.map(|(name, t)| (name.to_owned(), elements(t)))
        .collect()
}

/// Something that trains, and sees nothing else on its device.
struct Run {
    device: Device,
    /// The copies of the device before.
    copies: u64,
    model: Sequential,
    optimizer: Box<dyn Placed>,
    x: Tensor,
    y: Tensor,
    tape: Tape,
}

/// Whether SGD with momentum trains, or AdamW, and the type of the parameters. The state of those of a half type is
/// `f32`.
const CASES: [(bool, DType); 4] = [
    (true, DType::F32),
    (false, DType::F32),
    (true, DType::BF16),
    (false, DType::F16),
];

impl Run {
    fn new(device: Device, (momentum, dtype): (bool, DType)) -> Run {
        let mut f = Factory {
            dtype,
            ..Factory::new(device, 1)
        };
        let model = Sequential::new()
            .with(Linear::new(12, 40, &mut f).unwrap())
            .with(BatchNorm2d::new(40, &mut f).unwrap().with_relu())
            .with(Linear::new(40, 5, &mut f).unwrap());
        let optimizer: Box<dyn Placed> = match momentum {
            true => {
                let config = SgdConfig {
                    lr: 0.05,
                    momentum: 0.9,
                    ..SgdConfig::default()
                };
                Box::new(Sgd::new(model.parameters(), config).unwrap())
            }
            false => Box::new(Adam::new(model.parameters(), AdamConfig::adamw()).unwrap()),
        };
        let mut rng = Rng::new(3);
        Run {
            device,
            copies: device.memory().unwrap().copies,
            model,
            optimizer,
            x: Tensor::randn([16, 12], dtype, device, &mut rng).unwrap(),
            y: Tensor::randint(0, 5, [16], device, &mut rng).unwrap(),
            tape: Tape::new(),
        }
    }

    fn step(&mut self) {
        let x = self.tape.constant(self.x.clone());
        let loss = cross_entropy(&self.model.forward(&self.tape, &x).unwrap(), &self.y).unwrap();
        let gradients = self.tape.backward(&loss).unwrap();
        self.optimizer.step(&gradients).unwrap();
        // A card catches up: what its pool holds is not to depend on how far ahead the host is.
        self.device.synchronize().unwrap();
    }

    fn memory(&self) -> MemoryStats {
        self.device.memory().unwrap()
    }

    /// The writes that had to copy since the start.
    fn copies(&self) -> u64 {
        self.memory().copies - self.copies
    }
}

#[test]
fn from_the_third_step_on_nothing_moves_and_nothing_grows() {
    let Some((device, _turn)) = place(401) else {
        return;
    };
    for case @ (momentum, _) in CASES {
        let mut run = Run::new(device, case);
        let module = of_module(&run.model);
        run.step();
        let state = run.optimizer.addresses();
        assert_eq!(state.len(), if momentum { 6 } else { 12 });
        // Before the third step, somebody takes everything that can be had.
        let values: Vec<Tensor> = (run.model.parameters().iter())
            .map(|p| p.value().unwrap())
            .collect();
        let states = [State::of(&run.model), run.optimizer.state()].map(Result::unwrap);
        let taken: Vec<Bytes> = states.iter().map(bytes).collect();
        run.step();
        run.step();
        let warm = run.memory();
        for step in 3..10 {
            run.step();
            assert_eq!(run.memory(), warm, "{case:?}, step {step}");
            assert_eq!(of_module(&run.model), module, "{case:?}, step {step}");
            assert_eq!(run.optimizer.addresses(), state, "{case:?}, step {step}");
        }
        assert_eq!(run.copies(), 0);
        // What was taken is as it was, and the model is not.
        assert_eq!(states.iter().map(bytes).collect::<Vec<_>>(), taken);
        for (value, p) in values.iter().zip(run.model.parameters()) {
            let value = elements(value);
            assert!(p.read(|now| elements(now) != value), "{p:?}");
            assert!(taken[0].values().any(|known| *known == value));
        }
        assert_ne!(bytes(&State::of(&run.model).unwrap()), taken[0]);
        assert_ne!(bytes(&run.optimizer.state().unwrap()), taken[1]);
    }
}

#[test]
fn loading_a_state_moves_nothing_and_shares_nothing() {
    let Some((device, _turn)) = place(403) else {
        return;
    };
    for case in CASES {
        let mut run = Run::new(device, case);
        run.step();
        let saved = [State::of(&run.model), run.optimizer.state()].map(Result::unwrap);
        let taken: Vec<Bytes> = saved.iter().map(bytes).collect();
        run.step();
        let after = bytes(&State::of(&run.model).unwrap());
        let (module, state) = (of_module(&run.model), run.optimizer.addresses());
        for _ in 0..2 {
            saved[0].load_into(&run.model).unwrap();
            run.optimizer.load_state(saved[1].clone()).unwrap();
            assert_eq!(bytes(&State::of(&run.model).unwrap()), taken[0]);
            assert_eq!(bytes(&run.optimizer.state().unwrap()), taken[1]);
            run.step();
            assert_eq!(
                bytes(&State::of(&run.model).unwrap()),
                after,
                "the same step"
            );
            assert_eq!(
                (of_module(&run.model), run.optimizer.addresses()),
                (module.clone(), state.clone())
            );
            assert_eq!(saved.iter().map(bytes).collect::<Vec<_>>(), taken);
        }
        assert_eq!(run.copies(), 0);
        // An optimizer that has no state yet takes the tensors over, and shares none of them.
        let mut other = Run::new(device, case);
        other.optimizer.load_state(saved[1].clone()).unwrap();
        let state = other.optimizer.addresses();
        other.step();
        assert_eq!(other.optimizer.addresses(), state);
        assert_eq!(bytes(&saved[1]), taken[1]);
        assert_eq!(run.copies(), 0);
    }
}

#[test]
fn setting_a_value_moves_nothing() {
    let Some((device, _turn)) = place(404) else {
        return;
    };
    let mut run = Run::new(device, CASES[0]);
    run.step();
    let module = of_module(&run.model);
    let (params, buffers) = (run.model.parameters(), run.model.named_buffers());
    let held: Vec<Tensor> = (params.iter().map(|p| p.value()))
        .chain(buffers.iter().map(|(_, b)| b.value()))
        .map(Result::unwrap)
        .collect();
    let before: Vec<_> = held.iter().map(elements).collect();
    for from in [device, Device::cpu(0)] {
        // One of the buffers counts in whole numbers.
        let value = |dims: &[usize], dtype| Tensor::full(dims, 3.0, dtype, from).unwrap();
        for param in &params {
            param.set(value(param.shape(), param.dtype())).unwrap();
        }
        for (_, buffer) in &buffers {
            buffer.set(value(buffer.shape(), buffer.dtype())).unwrap();
        }
        assert_eq!(of_module(&run.model), module, "from {from}");
        let now = State::of(&run.model).unwrap();
        for (name, tensor) in now.iter() {
            let wanted = value(tensor.shape(), tensor.dtype());
            assert_eq!(elements(tensor), elements(&wanted), "{name} from {from}");
        }
        run.step();
    }
    assert_eq!(run.copies(), 0);
    assert_eq!(held.iter().map(elements).collect::<Vec<_>>(), before);
}

#[test]
fn a_write_to_what_a_tape_shares_copies_and_is_counted() {
    let Some((device, _turn)) = place(405) else {
        return;
    };
    let mut run = Run::new(device, CASES[0]);
    run.step();
    let before = of_module(&run.model);
    let (weight, old) = {
        let weight = run.model.parameters()[0].clone();
        let old = weight.value().unwrap().to_vec::<f32>().unwrap();
        (weight, old)
    };
    let other = Tape::new();
    let leaf = other.leaf(&weight);
    run.step();
    assert_eq!(run.copies(), 1, "one parameter is shared");
    assert_eq!(leaf.value().to_vec::<f32>().unwrap(), old);
    let after = of_module(&run.model);
    assert_ne!(after[0], before[0]);
    assert_eq!(after[1..], before[1..]);
    // Where there is no memory for the copy, nothing is written: neither that one nor another.
    let leaf = other.leaf(&run.model.parameters()[2]);
    let zeros = State::of(&run.model).unwrap();
    let mut changed = zeros.clone();
    for (name, t) in zeros.iter() {
        changed.insert(name, t.sub(t).unwrap());
    }
    let whole = bytes(&State::of(&run.model).unwrap());
    run.device
        .set_memory_limit(Some(run.memory().live))
        .unwrap();
    let e = changed.load_into(&run.model).unwrap_err();
    assert!(
        matches!(
            &e,
            Error::Tensor(phalanx_tensor::Error::OutOfMemory { limit: Some(_), .. })
        ),
        "{e}"
    );
    run.device.set_memory_limit(None).unwrap();
    assert_eq!(bytes(&State::of(&run.model).unwrap()), whole);
    drop(leaf);
    other.clear();
    let (addresses, copies) = (of_module(&run.model), run.copies());
    changed.load_into(&run.model).unwrap();
    assert_eq!(bytes(&State::of(&run.model).unwrap()), bytes(&changed));
    assert_eq!(of_module(&run.model), addresses);
    run.step();
    assert_eq!(run.copies(), copies);
}

#[test]
fn running_statistics_that_a_tape_shares_are_copied_before_they_change() {
    let Some((device, _turn)) = place(406) else {
        return;
    };
    let mut run = Run::new(device, CASES[0]);
    run.step();
    let evaluated = Tape::new();
    run.model.set_training(false);
    let x = evaluated.constant(run.x.clone());
    let out = run.model.forward(&evaluated, &x).unwrap();
    run.model.set_training(true);
    run.step();
    let shared = run.copies();
    assert!(
        shared > 2,
        "the parameters, the running mean and the running variance"
    );
    evaluated.clear();
    drop((x, out));
    let addresses = of_module(&run.model);
    run.step();
    assert_eq!(of_module(&run.model), addresses);
    assert_eq!(run.copies(), shared);
}
