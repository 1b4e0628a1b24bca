//! What is written in place stays where it is, on any device: where nobody else holds the tensor, it
//! keeps its address; where somebody does, the writer gets a new one and the holder keeps the values.

use crate::util::*;
use phalanx_tensor::ops::optim::{
    AdamConfig, AdamState, SgdConfig, adam_step, clip_by_norm, scale, sgd_step,
};
use phalanx_tensor::{DType, Device, Error, Result, Tensor};

/// One way to write a tensor in place.
struct Row {
    name: &'static str,
    /// Writes the tensor, with another one of its shape and type on its device. Both are held by nobody
    /// else, unless the test says so.
    write: fn(Tensor, &Tensor) -> Result<Tensor>,
    /// An element after that, of the element before and that of the other.
    value: fn(f64, f64) -> f64,
    /// Whether a write to a shared tensor copies it first, or makes the result at once.
    copies: bool,
    /// Whether it takes half types.
    halves: bool,
}

impl Row {
    const fn new(
        name: &'static str,
        write: fn(Tensor, &Tensor) -> Result<Tensor>,
        value: fn(f64, f64) -> f64,
    ) -> Row {
        Row {
            name,
            write,
            value,
            copies: true,
            halves: true,
        }
    }

    const fn makes_the_result_at_once(self) -> Row {
        Row {
            copies: false,
            ..self
        }
    }

    /// What an optimizer keeps of parameters of half types is `f32`.
    const fn of_a_state(self) -> Row {
        Row {
            halves: false,
            ..self
        }
    }
}

const SGD: SgdConfig = SgdConfig {
    lr: 0.5,
    momentum: 0.5,
    dampening: 0.0,
    weight_decay: 0.0,
    nesterov: false,
};

/// One step of a parameter; it and its momentum.
fn sgd(p: Tensor, g: &Tensor, momentum: Option<Tensor>) -> Result<[Tensor; 2]> {
    let (mut p, mut momenta) = ([p], [momentum]);
    sgd_step(&mut p, &[g], &mut momenta, &SGD)?;
    let ([p], [momentum]) = (p, momenta);
    Ok([p, momentum.expect("the step has made it")])
}

/// One step of a parameter; it and its moments.
fn adam(p: Tensor, g: &Tensor, moments: Option<[Tensor; 2]>) -> Result<[Tensor; 3]> {
    let config = AdamConfig {
        lr: 0.5,
        betas: [0.5, 0.75],
        ..AdamConfig::adam()
    };
    let state = moments.map(|[exp_avg, exp_avg_sq]| AdamState {
        exp_avg,
        exp_avg_sq,
        step: 1,
    });
    let (mut p, mut states) = ([p], [state]);
    adam_step(&mut p, &[g], &mut states, &config)?;
    let ([p], [state]) = (p, states);
    let state = state.expect("the step has made it");
    Ok([p, state.exp_avg, state.exp_avg_sq])
}

/// The squares' sum of [`OTHER`] is 22.75, so a number that stands for a norm.
const NORM: f64 = 8.0;

const ROWS: [Row; 13] = [
    Row::new("add_into", |t, other| t.add_into(other), |x, y| x + y).makes_the_result_at_once(),
    Row::new(
        "scale",
        |mut t, _| scale([&mut t], 0.5).map(|()| t),
        |x, _| 0.5 * x,
    ),
    Row::new(
        "scale by a number on the device",
        |mut t, _| {
            let half = Tensor::full((), 0.5, DType::F32, t.device())?;
            scale([&mut t], &half).map(|()| t)
        },
        |x, _| 0.5 * x,
    ),
    Row::new(
        "clip_by_norm",
        |mut t, _| clip_by_norm([&mut t], NORM, 2.0).map(|()| t),
        |x, _| x * (2.0 / (NORM + 1e-6)),
    ),
    Row::new(
        "sgd_step of a parameter",
        |p, g| sgd(p, g, None).map(|[p, _]| p),
        |x, y| x - 0.5 * y,
    ),
    Row::new(
        "sgd_step of a momentum",
        |m, g| sgd(g.copy()?, g, Some(m)).map(|[_, m]| m),
        |x, y| 0.5 * x + y,
    )
    .of_a_state(),
    Row::new(
        "adam_step of a parameter",
        |p, g| adam(p, g, None).map(|[p, _, _]| p),
        |x, y| x - 0.5 * (y / (y + 1e-8)),
    ),
    Row::new(
        "adam_step of a first moment",
        |m, g| adam(g.copy()?, g, Some([m, g.copy()?])).map(|[_, m, _]| m),
        |x, y| 0.5 * x + 0.5 * y,
    )
    .of_a_state(),
    Row::new(
        "adam_step of a second moment",
        |v, g| adam(g.copy()?, g, Some([g.copy()?, v])).map(|[_, _, v]| v),
        |x, y| 0.75 * x + 0.25 * y * y,
    )
    .of_a_state(),
    Row::new(
        "copy_from",
        |mut t, other| t.copy_from(other).map(|()| t),
        |_, y| y,
    ),
    Row::new(
        "copy_from another device",
        |mut t, other| {
            let elsewhere = other.to_device(Device::cpu(ELSEWHERE))?;
            t.copy_from(&elsewhere).map(|()| t)
        },
        |_, y| y,
    ),
    Row::new(
        "write_at",
        |mut t, other| t.write_at(0, other).map(|()| t),
        |_, y| y,
    ),
    Row::new(
        "make_unique",
        |mut t, _| t.make_unique().map(|()| t),
        |x, _| x,
    ),
];

/// The virtual device of the CPU on which no tensor lies that is written.
const ELSEWHERE: usize = 731;
const SHAPE: [usize; 2] = [2, 3];
const VALUES: [f64; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
const OTHER: [f64; 6] = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0];

/// How the tensor lies before it is written.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lies {
    /// In a storage that it fills.
    Whole,
    /// In the middle of a storage that is nobody else's.
    Inside,
    /// In a storage that it fills, held by somebody else as well.
    Shared,
    /// With gaps between its elements, in a storage that is nobody else's.
    WithGaps,
}

impl Lies {
    fn tensor(self, dtype: DType, device: Device) -> Tensor {
        let make = |values: &[f64], shape: [usize; 2]| {
            let t = Tensor::from_slice(values, shape, Device::cpu(ELSEWHERE)).unwrap();
            t.cast(dtype).unwrap().to_device(device).unwrap()
        };
        match self {
            Lies::Whole | Lies::Shared => make(&VALUES, SHAPE),
            Lies::Inside => {
                let rows = [&[0.0; 3][..], &VALUES, &[0.0; 3]].concat();
                make(&rows, [4, 3]).narrow(0, 1, 2).unwrap()
            }
            Lies::WithGaps => {
                let pairs: Vec<f64> = VALUES.iter().flat_map(|&v| [v, 0.0]).collect();
                make(&pairs, [2, 6]).slice(1, 0..5, 2).unwrap()
            }
        }
    }
}

#[test]
fn a_write_keeps_the_address_unless_somebody_else_holds_the_tensor() {
    let device = alone(730);
    let copies = || device.memory().unwrap().copies;
    for row in &ROWS {
        for dtype in FLOATS {
            if !row.halves && dtype.compute() != dtype {
                continue;
            }
            for lies in [Lies::Whole, Lies::Inside, Lies::Shared, Lies::WithGaps] {
                let what = format!("{} of {dtype}, {lies:?}", row.name);
                let other = Tensor::from_slice(&OTHER, SHAPE, Device::cpu(ELSEWHERE)).unwrap();
                let other = other.cast(dtype).unwrap().to_device(device).unwrap();
                let t = lies.tensor(dtype, device);
                let held = (lies == Lies::Shared).then(|| t.clone());
                let (before, copied) = (t.address(), copies());
                let t = (row.write)(t, &other).unwrap_or_else(|e| panic!("{what}: {e}"));
                let copied = copies() - copied;
                let stays = matches!(lies, Lies::Whole | Lies::Inside);
                assert_eq!(t.address() == before, stays, "{what}");
                let wanted = lies == Lies::Shared && row.copies;
                assert_eq!(copied, u64::from(wanted), "{what}: copies");
                let expected = VALUES.iter().zip(&OTHER).map(|(&x, &y)| (row.value)(x, y));
                let expected: Vec<f64> = expected.collect();
                assert_close(&t, &SHAPE, &expected, tolerance(dtype, 4.0), &what);
                if let Some(held) = held {
                    assert_eq!(held.address(), before, "{what}: the holder's");
                    assert_eq!(values(&held), VALUES, "{what}: the holder's");
                }
            }
        }
    }
}

/// Every element type is written over, from a view on another device.
#[test]
fn what_is_written_over_keeps_its_address() {
    let device = alone(732);
    for dtype in DType::ALL {
        let source = Tensor::arange(6, DType::I64, Device::cpu(ELSEWHERE)).unwrap();
        let source = source.cast(dtype).unwrap().reshape([3, 2]).unwrap();
        let source = source.t().unwrap();
        let want = values(&source);
        let mut t = Tensor::zeros([2, 3], dtype, device).unwrap();
        let before = t.address();
        t.copy_from(&source).unwrap();
        assert_eq!((t.address(), values(&t)), (before, want), "{dtype}");
        assert_eq!(t.device(), device);
        let copy = t.copy().unwrap();
        assert!(copy.is_unique() && copy.address() != before, "{dtype}");
    }
    let mut t = Tensor::zeros([2, 3], DType::F32, device).unwrap();
    let e = t.copy_from(&Tensor::zeros([3, 2], DType::F32, device).unwrap());
    assert!(matches!(
        e,
        Err(Error::ShapeMismatch {
            op: "copy_from",
            ..
        })
    ));
    let e = t.copy_from(&Tensor::zeros([2, 3], DType::F64, device).unwrap());
    assert!(matches!(
        e,
        Err(Error::DTypeMismatch {
            op: "copy_from",
            ..
        })
    ));
    device.synchronize().unwrap();
}

/// Views share the storage, and their addresses say where in it they begin.
#[test]
fn a_views_address_is_that_of_its_first_element() {
    for dtype in DType::ALL {
        let t = Tensor::zeros([4, 6], dtype, device()).unwrap();
        let at = |elements: usize| t.address() + (elements * dtype.size()) as u64;
        assert_eq!(t.narrow(0, 2, 1).unwrap().address(), at(12), "{dtype}");
        assert_eq!(t.select(1, 5).unwrap().address(), at(5), "{dtype}");
        assert_eq!(t.t().unwrap().address(), at(0), "{dtype}");
        assert_eq!(t.clone().address(), at(0), "{dtype}");
        let same_type = t.cast(dtype).unwrap();
        assert_eq!(same_type.address(), at(0), "{dtype}: a cast to it");
    }
    device().synchronize().unwrap();
}
