//! All ways by which a number of a tensor comes to the program, on any device.

use phalanx_tensor::{DType, Device, Error, Result, Tensor, WriteFault};

/// A way of reading a tensor.
pub struct Read {
    pub name: &'static str,
    pub run: fn(&Tensor) -> Result<()>,
    /// Whether it copies from the device to the host; the others fail for a tensor on a card by
    /// themselves, or stay on the device.
    pub copies: bool,
}

/// Every public method of a tensor that gives out its elements, or copies them.
pub const READS: &[Read] = &[
    Read {
        name: "to_vec",
        run: |t| t.to_vec::<f32>().map(drop),
        copies: true,
    },
    Read {
        name: "to_vec of a view",
        run: |t| t.t()?.to_vec::<f32>().map(drop),
        copies: true,
    },
    Read {
        name: "item",
        run: |t| t.select(0, 1)?.select(0, 0)?.item::<f64>().map(drop),
        copies: true,
    },
    Read {
        name: "to_device",
        run: |t| {
            let other = if t.device() == Device::cpu(5) {
                Device::cpu(6)
            } else {
                Device::cpu(5)
            };
            t.to_device(other).map(drop)
        },
        copies: true,
    },
    Read {
        name: "copy_from on the host",
        run: |t| Tensor::zeros(t.shape().clone(), t.dtype(), Device::cpu(5))?.copy_from(t),
        copies: true,
    },
    Read {
        name: "write_at on the host",
        run: |t| Tensor::zeros([100], t.dtype(), Device::cpu(5))?.write_at(3, t),
        copies: true,
    },
    Read {
        name: "as_slice",
        run: |t| t.as_slice::<f32>().map(drop),
        copies: false,
    },
    Read {
        name: "as_bytes",
        run: |t| t.as_bytes().map(drop),
        copies: false,
    },
    Read {
        name: "make_mut",
        run: |t| t.clone().make_mut::<f32>().map(drop),
        copies: false,
    },
    Read {
        name: "bytes_mut",
        run: |t| t.clone().bytes_mut().map(drop),
        copies: false,
    },
    Read {
        name: "copy",
        run: |t| t.copy().map(drop),
        copies: false,
    },
    Read {
        name: "contiguous of a view",
        run: |t| t.t()?.contiguous().map(drop),
        copies: false,
    },
    Read {
        name: "neg",
        run: |t| t.neg().map(drop),
        copies: false,
    },
    Read {
        name: "make_unique",
        run: |t| t.clone().make_unique(),
        copies: false,
    },
];

/// A matrix of known values.
pub fn matrix(device: Device) -> Tensor {
    Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3], device).unwrap()
}

/// No way gives out a number of a tensor whose last write was lost; every way does so again after it
/// was written anew.
pub fn lost_writes_are_never_read(device: Device) {
    let mut t = matrix(device);
    let fault = WriteFault::new();
    t.set_last_write(&fault);
    let works = |t: &Tensor, when: &str| {
        for read in READS {
            match (read.run)(t) {
                Ok(()) => {}
                Err(Error::DeviceUnavailable { .. }) if !device.is_cpu() && !read.copies => {}
                Err(e) => panic!("{} {when}: {e}", read.name),
            }
        }
    };
    works(&t, "before the write was lost");
    fault.declare("the collective was aborted");
    fault.declare("a second reason");
    for read in READS {
        let e = (read.run)(&t).expect_err(read.name);
        let Error::LostWrite {
            reason, device: at, ..
        } = &e
        else {
            panic!("{}: {e}", read.name);
        };
        assert_eq!(
            (reason.as_str(), *at),
            ("the collective was aborted", device),
            "{}",
            read.name
        );
    }
    // What was computed from it before that is lost with it, copies included, and nothing else is.
    let source = matrix(device);
    let fault = WriteFault::new();
    source.set_last_write(&fault);
    let mut kept = matrix(device);
    let mut copied = matrix(device);
    copied.copy_from(&source).unwrap();
    let made = [
        source.neg().unwrap(),
        source.copy().unwrap(),
        source.t().unwrap().contiguous().unwrap(),
        copied,
    ];
    let sum = made[0].add(&matrix(device)).unwrap();
    let independent = kept.neg().unwrap();
    fault.declare("late");
    for t in made.iter().chain([&sum]) {
        assert!(matches!(t.to_vec::<f32>(), Err(Error::LostWrite { .. })));
    }
    assert!(independent.to_vec::<f32>().is_ok());
    // A copy that is refused leaves the target as it was.
    assert!(kept.copy_from(&source).is_err() && kept.to_vec::<f32>().is_ok());
    let mut lost = source.copy();
    assert!(lost.as_mut().is_err());
    assert!(
        t.copy_from(&source).is_err() && t.to_vec::<f32>().is_err(),
        "a refused copy mends nothing"
    );
    // A write that went well asks nobody any more, and cannot be declared lost.
    let good = WriteFault::new();
    kept.set_last_write(&good);
    good.settle();
    good.declare("too late");
    assert!(kept.neg().unwrap().to_vec::<f32>().is_ok());
    // A view of it is no way around.
    assert!(t.narrow(0, 0, 1).unwrap().to_vec::<f32>().is_err());
    assert!(!format!("{t:?}").contains("1.0"), "{t:?}");
    // Nor is writing a part of it.
    assert!(
        t.write_at(0, &Tensor::zeros([1], DType::F32, device).unwrap())
            .is_err()
    );
    t.copy_from(&matrix(device)).unwrap();
    works(&t, "after it was written anew");
    assert_eq!(t.to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
}
