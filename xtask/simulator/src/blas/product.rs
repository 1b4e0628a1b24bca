//! One product: whether what is asked for fits together, and the sums.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::epilogue::{Epilogue, Given};
use super::numbers::{Sum, load, store, tf32};
use super::objects::{Data, Layout, Objects, Operation, Preference};
use super::{Result, Status, wrong};
use crate::device::code::Code;
use crate::device::operation::{Custom, Failure};
use crate::driver::pointers::Array;
use crate::exec::{Memory, Touched};

/// `CUBLAS_COMPUTE_32F`.
const COMPUTE_32F: u32 = 68;
/// `CUBLAS_COMPUTE_64F`.
const COMPUTE_64F: u32 = 70;
/// `CUBLAS_COMPUTE_32F_FAST_TF32`.
const COMPUTE_TF32: u32 = 77;

/// A way to compute a product: `cublasLtMatmulAlgo_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Algorithm {
    /// What it was chosen for.
    problem: u64,
    workspace: u64,
    /// The alignments of A, B, C and D.
    aligned: [u32; 4],
    /// Those of the bias and the auxiliary matrix.
    given: [u32; 2],
    unused: [u64; 3],
}

impl Algorithm {
    /// Bytes of workspace that it needs.
    pub fn workspace(&self) -> usize {
        self.workspace as usize
    }
}

/// What is to be computed, but for the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    operation: Operation,
    /// A, B, and D, which C must be like.
    layouts: [Layout; 3],
    m: u64,
    n: u64,
    k: u64,
}

impl Problem {
    /// # Errors
    /// What was given does not fit together, or is not simulated.
    pub fn new(objects: &mut Objects, operation: u64, layouts: [u64; 4]) -> Result<Problem> {
        let mut operation = *objects.operation(operation)?;
        let [a, b, c, d] = {
            let [a, b, c, d] = layouts;
            let mut layout = |handle| objects.layout(handle).copied();
            [layout(a)?, layout(b)?, layout(c)?, layout(d)?]
        };
        let refuse =
            |what: String, status| Err(wrong(format!("A product by cuBLASLt: {what}"), status));
        if c != d {
            return refuse(
                "C is not like D, which is not simulated.".into(),
                Status::NOT_SUPPORTED,
            );
        }
        let along = |layout: &Layout, transposed| match transposed {
            false => (layout.rows, layout.cols),
            true => (layout.cols, layout.rows),
        };
        let ((m, k), (inner, n)) = (
            along(&a, operation.transposed[0]),
            along(&b, operation.transposed[1]),
        );
        if k != inner || (d.rows, d.cols) != (m, n) || a.batch != b.batch || a.batch != d.batch {
            let what = format!("{a:?} times {b:?} is not {d:?} under {operation:?}.");
            return refuse(what, Status::INVALID_VALUE);
        }
        if [m, n, k, d.batch]
            .iter()
            .any(|extent| *extent > i32::MAX as u64)
        {
            return refuse(
                "an extent has more than 31 bits.".into(),
                Status::NOT_SUPPORTED,
            );
        }
        if d.batch > 1 && d.apart < d.span() {
            return refuse("results overlap.".into(), Status::INVALID_VALUE);
        }
        let types = match operation.compute {
            COMPUTE_64F => [a.data, b.data, d.data, operation.scale] == [Data::F64; 4],
            COMPUTE_32F | COMPUTE_TF32 => {
                let inputs = a.data == b.data && a.data != Data::F64;
                let result = d.data == a.data || d.data == Data::F32;
                let fast = operation.compute == COMPUTE_TF32;
                inputs && result && operation.scale == Data::F32 && (!fast || a.data == Data::F32)
            }
            _ => false,
        };
        if !types {
            let what = format!("types {a:?}, {b:?}, {d:?} under {operation:?} are not simulated.");
            return refuse(what, Status::NOT_SUPPORTED);
        }
        if !operation.epilogue.is_simulated() {
            let what = format!("the epilogue {} is not simulated.", operation.epilogue.0);
            return refuse(what, Status::NOT_SUPPORTED);
        }
        let ld = operation.aux_ld;
        if operation.epilogue.has_aux() && (ld % 8 != 0 || ld < m as i64 || d.batch > 1) {
            let what = format!(
                "the auxiliary matrix of {m} rows, of a stack of {}, has the leading dimension {ld}.",
                d.batch
            );
            return refuse(what, Status::INVALID_VALUE);
        }
        operation.given = Given::default(); // no part of the problem
        Ok(Problem {
            operation,
            layouts: [a, b, d],
            m,
            n,
            k,
        })
    }

    /// Whether there is no algorithm for it. The library's documentation promises none for any problem, so one kind
    /// has none here: doubles with an epilogue.
    pub fn is_rare(&self) -> bool {
        self.operation.compute == COMPUTE_64F && self.operation.epilogue != Epilogue::NONE
    }

    /// How it is computed within a preference. The addresses of the epilogue say how they are aligned.
    pub fn algorithm(&self, preference: &Preference, given: Given) -> Algorithm {
        // Long sums are made in parts, where the parts may be added in the type of computation.
        let parts = self.k >= 128 && preference.schemes & 2 == 2;
        let wish = self.m * self.n * 4 * u64::from(parts);
        Algorithm {
            problem: self.print(),
            workspace: if wish <= preference.workspace {
                wish
            } else {
                0
            },
            aligned: preference.aligned,
            given: given.aligned(),
            unused: [0; 3],
        }
    }

    fn print(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// A factor in the memory of the host.
    ///
    /// # Errors
    /// It is missing.
    pub fn factor(&self, at: u64) -> Result<f64> {
        if at == 0 {
            return Err(wrong(
                "A factor of cublasLtMatmul is null.".into(),
                Status::INVALID_VALUE,
            ));
        }
        Ok(match self.operation.scale {
            Data::F64 => Array::<f64>::at(at).item(0)?,
            _ => Array::<f32>::at(at).item(0)?.into(),
        })
    }
}

/// A product with its operands.
pub struct Product {
    problem: Problem,
    factors: [f64; 2],
    /// A, B, and D, which is C.
    places: [u64; 3],
    given: Given,
    workspace: (u64, u64),
}

impl Product {
    /// # Errors
    /// The operands are not what the algorithm was chosen for.
    pub fn new(
        problem: Problem,
        algorithm: Algorithm,
        factors: [f64; 2],
        [a, b, c, d]: [u64; 4],
        given: Given,
        (workspace, bytes): (u64, usize),
    ) -> Result<Product> {
        let refuse = |what: String, status| Err(wrong(format!("cublasLtMatmul: {what}"), status));
        if algorithm.problem != problem.print() {
            return refuse(
                "the algorithm was chosen for another problem.".into(),
                Status::INVALID_VALUE,
            );
        }
        for (name, (at, aligned)) in ["A", "B", "C", "D"]
            .iter()
            .zip([a, b, c, d].into_iter().zip(algorithm.aligned))
        {
            if at % u64::from(aligned) != 0 {
                let what = format!(
                    "{name} lies at {at:#x}, and the algorithm was chosen for {aligned} bytes."
                );
                return refuse(what, Status::INVALID_VALUE);
            }
        }
        if (bytes as u64) < algorithm.workspace
            || algorithm.workspace > 0 && !workspace.is_multiple_of(16)
        {
            let needs = algorithm.workspace;
            let what =
                format!("{bytes} bytes of workspace at {workspace:#x}, and {needs} are needed.");
            return refuse(what, Status::INVALID_VALUE);
        }
        if factors[1] != 0.0 && c != d {
            return refuse(
                "C is not D, which is not simulated.".into(),
                Status::NOT_SUPPORTED,
            );
        }
        problem.operation.epilogue.check(given, algorithm.given)?;
        Ok(Product {
            problem,
            factors,
            places: [a, b, d],
            given,
            workspace: (workspace, algorithm.workspace),
        })
    }
}

/// The bytes of an operand, `len` from `at` on, and whether each was written; they are touched.
struct Bytes {
    host: *mut u8,
    valid: *mut u8,
    at: u64,
}

impl Bytes {
    fn find(
        memory: &dyn Memory,
        what: &str,
        at: u64,
        len: u64,
    ) -> std::result::Result<(Bytes, u64, u64), Failure> {
        let region = memory
            .find(at)
            .filter(|region| len <= region.base + region.len - at);
        let Some(region) = region else {
            let wrong = if memory.find(at).is_none() {
                at
            } else {
                at + len - 1
            };
            return Err(Failure::address(format!(
                "A product of matrices touches the address {wrong:#x} of its operand {what}, {}.",
                memory.explain(wrong)
            )));
        };
        let offset = at - region.base;
        // SAFETY: the offset lies in the region, for which `host` has its bytes, and `valid` as many if it is not null.
        let (host, valid) = unsafe {
            let valid = match region.valid.is_null() {
                true => region.valid,
                false => region.valid.add(offset as usize),
            };
            (region.host.add(offset as usize), valid)
        };
        Ok((Bytes { host, valid, at }, region.id, offset))
    }

    /// An element.
    fn load(
        &self,
        memory: &dyn Memory,
        what: &str,
        data: Data,
        index: u64,
    ) -> std::result::Result<f64, Failure> {
        let (at, size) = ((index * data.size()) as usize, data.size() as usize);
        // SAFETY: the caller asks within the bytes that were found.
        let (bytes, valid) = unsafe {
            let valid = match self.valid.is_null() {
                true => &[][..],
                false => std::slice::from_raw_parts(self.valid.add(at), size),
            };
            (std::slice::from_raw_parts(self.host.add(at), size), valid)
        };
        if valid.contains(&0) {
            return Err(Failure {
                code: Code::LAUNCH_FAILED,
                message: format!(
                    "A product of matrices reads bytes that nothing has written: element {index} of its operand {what}, {}.",
                    memory.explain(self.at + at as u64)
                ),
            });
        }
        Ok(load(data, bytes))
    }

    fn store(&self, data: Data, index: u64, v: f64) {
        let (at, size) = ((index * data.size()) as usize, data.size() as usize);
        // SAFETY: as above; the operands of an operation are its own while it runs.
        unsafe {
            store(
                data,
                v,
                std::slice::from_raw_parts_mut(self.host.add(at), size),
            );
            if !self.valid.is_null() {
                std::ptr::write_bytes(self.valid.add(at), 1, size);
            }
        }
    }
}

impl Custom for Product {
    fn name(&self) -> Arc<str> {
        "cublasLtMatmul".into()
    }

    fn addresses(&self) -> Vec<u64> {
        let (epilogue, given) = (self.problem.operation.epilogue, self.given);
        let extra = [
            (epilogue.has_bias(), given.bias),
            (epilogue.has_aux(), given.aux),
            (self.workspace.0 != 0, self.workspace.0),
        ];
        let extra = extra.into_iter().filter(|(used, _)| *used);
        let extra = extra.map(|(_, at)| at);
        self.places.into_iter().chain(extra).collect()
    }

    fn run(&mut self, memory: &dyn Memory) -> std::result::Result<Vec<Touched>, Failure> {
        match self.problem.operation.scale {
            Data::F64 => self.compute::<f64>(memory),
            _ => self.compute::<f32>(memory),
        }
    }
}

impl Product {
    fn compute<R: Sum>(&self, memory: &dyn Memory) -> std::result::Result<Vec<Touched>, Failure> {
        let Problem {
            operation,
            layouts,
            m,
            n,
            k,
        } = self.problem;
        let epilogue = operation.epilogue;
        let mut touched = Vec::new();
        let mut operands = Vec::new();
        for ((what, layout), at) in ["A", "B", "D"].into_iter().zip(&layouts).zip(self.places) {
            let len = ((layout.batch - 1) * layout.apart + layout.span()) * layout.data.size();
            let (bytes, region, offset) = Bytes::find(memory, what, at, len)?;
            let range = Some(offset..offset + len);
            let (read, written) = match what {
                "D" if self.factors[1] == 0.0 => (None, range),
                "D" => (range.clone(), range),
                _ => (range, None),
            };
            touched.push(Touched {
                region,
                read,
                written,
            });
            operands.push(bytes);
        }
        let [a, b, d] = &operands[..] else {
            unreachable!("there are three operands")
        };
        let bias = if epilogue.has_bias() {
            let len = m * layouts[2].data.size();
            let (bytes, region, offset) = Bytes::find(memory, "bias", self.given.bias, len)?;
            touched.push(Touched {
                region,
                read: Some(offset..offset + len),
                written: None,
            });
            Some(bytes)
        } else {
            None
        };
        let aux_ld = operation.aux_ld as u64;
        let aux = if epilogue.has_aux() {
            let len = ((n - 1) * aux_ld + m) * layouts[2].data.size();
            let (bytes, region, offset) = Bytes::find(memory, "aux", self.given.aux, len)?;
            touched.push(Touched {
                region,
                read: None,
                written: Some(offset..offset + len),
            });
            Some(bytes)
        } else {
            None
        };
        if self.workspace.1 > 0 {
            let (at, len) = self.workspace;
            let (bytes, region, offset) = Bytes::find(memory, "workspace", at, len)?;
            // SAFETY: `len` bytes were found.
            unsafe { std::ptr::write_bytes(bytes.host, 0xa5, len as usize) };
            touched.push(Touched {
                region,
                read: None,
                written: Some(offset..offset + len),
            });
        }
        let element = |bytes: &Bytes, what, operand: usize, first: u64, row: u64, col: u64| {
            let layout = &layouts[operand];
            let index = match operation.transposed.get(operand) {
                Some(true) => col + row * layout.ld,
                _ => row + col * layout.ld,
            };
            let v = bytes.load(memory, what, layout.data, first + index)?;
            Ok::<f64, Failure>(if operation.compute == COMPUTE_TF32 {
                tf32(v)
            } else {
                v
            })
        };
        let [alpha, beta] = self.factors;
        for matrix in 0..layouts[2].batch {
            let [in_a, in_b, in_d] =
                [0, 1, 2].map(|operand: usize| matrix * layouts[operand].apart);
            // The columns of A, one after another.
            let mut left = Vec::with_capacity((m * k) as usize);
            for col in 0..k {
                for row in 0..m {
                    left.push(R::of(element(a, "A", 0, in_a, row, col)?));
                }
            }
            let mut sums = vec![R::of(0.0); m as usize];
            for col in 0..n {
                sums.fill(R::of(0.0));
                for inner in 0..k {
                    let factor = R::of(element(b, "B", 1, in_b, inner, col)?);
                    let column = &left[(inner * m) as usize..((inner + 1) * m) as usize];
                    for (sum, v) in sums.iter_mut().zip(column) {
                        *sum = v.times_plus(factor, *sum);
                    }
                }
                for (row, sum) in (0..m).zip(&sums) {
                    let index = in_d + row + col * layouts[2].ld;
                    let mut v = R::of(alpha * sum.wide());
                    if beta != 0.0 {
                        let before = d.load(memory, "C", layouts[2].data, index)?;
                        v = R::of(beta).times_plus(R::of(before), v);
                    }
                    if let Some(bias) = &bias {
                        let bias = bias.load(memory, "bias", layouts[2].data, row)?;
                        v = R::of(1.0).times_plus(R::of(bias), v);
                    }
                    if let Some(aux) = &aux {
                        aux.store(layouts[2].data, row + col * aux_ld, v.wide());
                    }
                    d.store(layouts[2].data, index, epilogue.apply(v.wide()));
                }
            }
        }
        Ok(touched)
    }
}
