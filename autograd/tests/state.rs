//! States on disk: several writers, names that the format reserves, numbers that cannot be.

use phalanx_autograd::nn::{Count, Module, Visitor};
use phalanx_autograd::optim::{Adam, AdamConfig, Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{Error, Param, Result, State, Tape, Var};
use phalanx_tensor::{DType, Device, Tensor};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const CPU: Device = Device::cpu(0);

/// A folder of this test's own, which it removes.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("phalanx-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn names(&self) -> Vec<String> {
        let files = std::fs::read_dir(&self.0).unwrap();
        files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

fn one(name: &str, tensor: Tensor) -> State {
    let mut state = State::new();
    state.insert(name, tensor);
    state
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, CPU).unwrap()
}

#[test]
fn ranks_that_save_to_one_path_leave_whole_files() {
    let folder = Folder::new("ranks-save");
    let path = folder.0.join("model.safetensors");
    let state = |rank: i64| {
        let values = Tensor::full([1 << 16], rank as f64, DType::F32, CPU).unwrap();
        one("w", values)
    };
    state(0).save(&path).unwrap();
    let loads = AtomicUsize::new(0);
    std::thread::scope(|s| {
        for rank in 0..4 {
            let (path, loads) = (&path, &loads);
            s.spawn(move || {
                for _ in 0..8 {
                    state(rank).save(path).unwrap();
                    let state = State::load(path, CPU).unwrap();
                    let values = state.get("w").unwrap().to_vec::<f32>().unwrap();
                    assert_eq!(values.len(), 1 << 16);
                    assert!(values.iter().all(|v| *v == values[0]), "of one writer");
                    loads.fetch_add(1, Relaxed);
                }
            });
        }
    });
    assert_eq!(loads.into_inner(), 4 * 8);
    assert_eq!(folder.names(), ["model.safetensors"]);
}

#[test]
fn a_name_may_be_as_long_as_the_system_takes() {
    let folder = Folder::new("long-name");
    let name = "m".repeat(255);
    let path = folder.0.join(&name);
    one("w", zeros(&[2])).save(&path).unwrap();
    State::load(&path, CPU).unwrap();
    assert_eq!(folder.names(), [name]);
}

#[test]
fn errors_of_files_name_the_file() {
    let folder = Folder::new("named-file");
    let path = folder.0.join("model.safetensors");
    std::fs::write(&path, b"nonsense").unwrap();
    let name = path.to_str().unwrap();
    let nowhere = folder.0.join("nowhere/model.safetensors");
    let errors = [
        State::load(&path, CPU).unwrap_err(),
        one("__metadata__", zeros(&[1])).save(&path).unwrap_err(),
    ];
    for e in &errors {
        assert!(e.to_string().starts_with(name), "{e}");
    }
    for e in [
        State::load(&nowhere, CPU).unwrap_err(),
        one("w", zeros(&[1])).save(&nowhere).unwrap_err(),
    ] {
        let name = nowhere.to_str().unwrap();
        assert!(e.to_string().starts_with(name), "{e}");
    }
}

#[test]
fn truth_values_are_saved_and_loaded_as_0_and_1() {
    let mut t = Tensor::empty([3], DType::Bool, CPU).unwrap();
    t.bytes_mut().unwrap().copy_from_slice(&[0, 1, 2]);
    let mut bytes = one("mask", t).to_bytes().unwrap();
    let data = bytes.len() - 3;
    assert_eq!(bytes[data..], [0, 1, 1]);
    bytes[data..].copy_from_slice(&[255, 0, 7]);
    let state = State::from_bytes(&bytes, CPU).unwrap();
    let mask = state.get("mask").unwrap();
    assert_eq!(mask.dtype(), DType::Bool);
    assert_eq!(mask.as_bytes().unwrap(), [1, 0, 1]);
    assert_eq!(mask.to_vec::<bool>().unwrap(), [true, false, true]);
}

#[test]
fn what_is_saved_can_be_loaded_and_what_cannot_is_not_saved() {
    for name in ["", " ", "a.b.", "\"\\\n\u{0}", "ä", "__metadata"] {
        let bytes = one(name, zeros(&[2, 0])).to_bytes().unwrap();
        let back = State::from_bytes(&bytes, CPU).unwrap();
        assert_eq!(back.get(name).unwrap().dims(), [2, 0], "{name:?}");
        assert_eq!(back.len(), 1);
    }
    let e = one("__metadata__", zeros(&[1])).to_bytes().unwrap_err();
    assert_eq!(
        e.to_string(),
        "the state cannot be saved: a tensor is named `__metadata__`, which the format keeps for itself"
    );
    let e = one("x".repeat(100_000_000).as_str(), zeros(&[1]))
        .to_bytes()
        .unwrap_err();
    assert!(
        matches!(e, Error::Unsavable { .. }),
        "{}",
        e.to_string().len()
    );
}

struct Counts(Count);

impl Module for Counts {
    fn forward(&self, _: &Tape, x: &Var) -> Result<Var> {
        Ok(x.clone())
    }
    fn visit(&self, v: &mut Visitor<'_>) {
        v.count("uses", &self.0);
    }
}

#[test]
fn counts_that_cannot_be_are_refused_both_ways() {
    let module = Counts(Count::default());
    let most = (1u64 << 53) - 1;
    module.0.set(most);
    let state = State::of(&module).unwrap();
    module.0.set(0);
    state.load_into(&module).unwrap();
    assert_eq!(module.0.get(), most);
    for count in [most + 1, u64::MAX] {
        module.0.set(count);
        let e = State::of(&module).unwrap_err();
        assert!(matches!(e, Error::Unsavable { .. }), "{e}");
        assert!(e.to_string().contains("`uses`"), "{e}");
    }
    for count in [-1, i64::MIN, i64::MAX, 1 << 53, (1 << 53) + 1] {
        let state = one("uses", Tensor::from_slice(&[count], (), CPU).unwrap());
        let e = state.load_into(&module).unwrap_err();
        assert!(matches!(e, Error::Format { .. }), "{count}: {e}");
        assert!(e.to_string().contains("`uses`"), "{e}");
    }
}

fn number(value: f64) -> Tensor {
    Tensor::scalar(value, CPU).unwrap()
}

#[test]
fn steps_and_rates_that_cannot_be_are_refused() {
    let p = Param::new(number(1.0));
    let mut adam = Adam::new(vec![p.clone()], AdamConfig::adam()).unwrap();
    let tape = Tape::new();
    let loss = tape.leaf(&p).square().unwrap();
    adam.step(&tape.backward(&loss).unwrap()).unwrap();
    let good = adam.state().unwrap();
    let int = |step: i64| Tensor::from_slice(&[step], (), CPU).unwrap();
    let wrong = [
        ("0.step", int(-1)),
        ("0.step", int(i64::MAX)),
        ("0.step", int(1 << 53)),
        ("0.step", number(f64::NAN)),
        ("0.step", number(1.5)),
        ("0.step", number(-3.0)),
        ("0.step", number(f64::INFINITY)),
        ("0.step", zeros(&[2])),
        ("0.step", zeros(&[0])),
        ("lr", number(f64::NAN)),
        ("lr", number(-0.1)),
        ("lr", number(f64::INFINITY)),
        ("lr", zeros(&[2])),
    ];
    for (name, value) in wrong {
        let mut state = good.clone();
        let what = format!("{value:?}");
        state.insert(name, value);
        let e = adam.load_state(state).expect_err(&what);
        assert!(e.to_string().contains(&format!("`{name}`")), "{what}: {e}");
        let now = adam.state().unwrap().to_bytes().unwrap();
        assert_eq!(now, good.to_bytes().unwrap(), "nothing was changed");
    }
    // PyTorch saves steps as f32.
    let mut state = good.clone();
    state.insert("0.step", Tensor::full((), 7.0, DType::F32, CPU).unwrap());
    adam.load_state(state).unwrap();
    let step = adam.state().unwrap().take("0.step").unwrap();
    assert_eq!(step.to_vec::<i64>().unwrap(), [7]);

    // What would not be loaded cannot come about.
    for lr in [f64::NAN, -1.0, f64::INFINITY] {
        let before = adam.state().unwrap().to_bytes().unwrap();
        assert!(adam.set_lr(lr).is_err());
        assert!(adam.state().unwrap().to_bytes().unwrap() == before);
        let config = SgdConfig {
            lr,
            ..SgdConfig::default()
        };
        assert!(Sgd::new(vec![p.clone()], config).is_err());
    }
}

#[test]
fn debug_is_the_sentence() {
    let e = State::load("/nowhere/at/all", CPU).unwrap_err();
    assert_eq!(format!("{e:?}"), e.to_string());
    let e = zeros(&[2]).reshape([3]).unwrap_err();
    assert_eq!(format!("{e:?}"), e.to_string());
}
