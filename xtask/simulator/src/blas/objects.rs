//! The descriptions that a program makes and fills in, and the handles by which it names them.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use super::epilogue::{Epilogue, Given};
use super::{Result, Status, wrong};

/// A type of elements: `cudaDataType_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Data {
    /// `CUDA_R_32F`.
    F32,
    /// `CUDA_R_64F`.
    F64,
    /// `CUDA_R_16F`.
    F16,
    /// `CUDA_R_16BF`.
    BF16,
}

impl Data {
    /// # Errors
    /// The type is not simulated.
    pub fn new(number: u32) -> Result<Data> {
        match number {
            0 => Ok(Data::F32),
            1 => Ok(Data::F64),
            2 => Ok(Data::F16),
            14 => Ok(Data::BF16),
            _ => {
                let sentence = format!("cuBLASLt's type of elements {number} is not simulated.");
                Err(wrong(sentence, Status::NOT_SUPPORTED))
            }
        }
    }

    /// Bytes of an element.
    pub fn size(self) -> u64 {
        match self {
            Data::F64 => 8,
            Data::F32 => 4,
            Data::F16 | Data::BF16 => 2,
        }
    }
}

/// What `cublasLtMatmulDesc_t` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operation {
    /// `cublasComputeType_t`.
    pub compute: u32,
    /// The type of the factors.
    pub scale: Data,
    /// Whether the first operand is transposed, and the second.
    pub transposed: [bool; 2],
    /// What is done with its sums.
    pub epilogue: Epilogue,
    /// Elements from column to column of the auxiliary matrix.
    pub aux_ld: i64,
    /// What the epilogue is given.
    pub given: Given,
}

/// What `cublasLtMatrixLayout_t` names, in column-major order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// The type of the elements.
    pub data: Data,
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// Elements from column to column.
    pub ld: u64,
    /// Matrices.
    pub batch: u64,
    /// Elements from matrix to matrix.
    pub apart: u64,
}

/// What `cublasLtMatmulPreference_t` names.
#[derive(Clone, Copy, Debug)]
pub struct Preference {
    /// The most bytes of workspace.
    pub workspace: u64,
    /// `cublasLtReductionScheme_t` that may be used, a bit for each.
    pub schemes: u32,
    /// Bytes to which the operands A, B, C and D are aligned.
    pub aligned: [u32; 4],
}

impl Default for Preference {
    fn default() -> Preference {
        Preference {
            workspace: 0,
            schemes: u32::MAX,
            aligned: [256; 4],
        }
    }
}

/// The value of an attribute with as many bytes as it has.
fn read<const N: usize>(what: &str, which: u32, value: &[u8]) -> Result<[u8; N]> {
    value.try_into().map_err(|_| {
        let sentence = format!(
            "The attribute {which} of {what} has {N} bytes, and {} are given.",
            value.len()
        );
        wrong(sentence, Status::INVALID_VALUE)
    })
}

fn unknown<T>(what: &str, which: u32) -> Result<T> {
    let sentence = format!("The attribute {which} of {what} is not simulated.");
    Err(wrong(sentence, Status::NOT_SUPPORTED))
}

impl Operation {
    /// As `cublasLtMatmulDescCreate` makes it.
    pub fn new(compute: u32, scale: Data) -> Operation {
        Operation {
            compute,
            scale,
            transposed: [false; 2],
            epilogue: Epilogue::NONE,
            aux_ld: 0,
            given: Given::default(),
        }
    }

    /// Sets an attribute: `cublasLtMatmulDescAttributes_t`.
    ///
    /// # Errors
    /// The attribute or its size is wrong.
    pub fn set(&mut self, which: u32, value: &[u8]) -> Result<()> {
        const WHAT: &str = "a product";
        match which {
            3 | 4 => {
                let operation = u32::from_le_bytes(read(WHAT, which, value)?);
                if operation > 1 {
                    return unknown("a product, that it is conjugated", which);
                }
                self.transposed[which as usize - 3] = operation == 1;
            }
            7 => self.epilogue = Epilogue(u32::from_le_bytes(read(WHAT, which, value)?)),
            8 => self.given.bias = u64::from_le_bytes(read(WHAT, which, value)?),
            11 => self.given.aux = u64::from_le_bytes(read(WHAT, which, value)?),
            12 => self.aux_ld = i64::from_le_bytes(read(WHAT, which, value)?),
            _ => return unknown(WHAT, which),
        }
        Ok(())
    }
}

impl Layout {
    /// As `cublasLtMatrixLayoutCreate` makes it.
    ///
    /// # Errors
    /// A column is longer than the way to the next one.
    pub fn new(data: Data, rows: u64, cols: u64, ld: i64) -> Result<Layout> {
        let ld = u64::try_from(ld).unwrap_or(0);
        if rows == 0 || cols == 0 || ld < rows {
            let sentence = format!(
                "A matrix of {rows} rows and {cols} columns has the leading dimension {ld}."
            );
            return Err(wrong(sentence, Status::INVALID_VALUE));
        }
        Ok(Layout {
            data,
            rows,
            cols,
            ld,
            batch: 1,
            apart: 0,
        })
    }

    /// Sets an attribute: `cublasLtMatrixLayoutAttribute_t`.
    ///
    /// # Errors
    /// The attribute, its size or its value is wrong.
    pub fn set(&mut self, which: u32, value: &[u8]) -> Result<()> {
        const WHAT: &str = "a matrix";
        let of_sign = |number: i64| {
            u64::try_from(number).map_err(|_| {
                let sentence = format!("The attribute {which} of {WHAT} is {number}.");
                wrong(sentence, Status::INVALID_VALUE)
            })
        };
        match which {
            5 => self.batch = of_sign(i32::from_le_bytes(read(WHAT, which, value)?).into())?,
            6 => self.apart = of_sign(i64::from_le_bytes(read(WHAT, which, value)?))?,
            _ => return unknown(WHAT, which),
        }
        Ok(())
    }

    /// Elements from the first to behind the last one of a matrix.
    pub fn span(&self) -> u64 {
        (self.cols - 1) * self.ld + self.rows
    }
}

impl Preference {
    /// Sets an attribute: `cublasLtMatmulPreferenceAttributes_t`.
    ///
    /// # Errors
    /// The attribute, its size or its value is wrong.
    pub fn set(&mut self, which: u32, value: &[u8]) -> Result<()> {
        const WHAT: &str = "a preference";
        match which {
            1 => self.workspace = u64::from_le_bytes(read(WHAT, which, value)?),
            3 => self.schemes = u32::from_le_bytes(read(WHAT, which, value)?),
            5..=8 => {
                let bytes = u32::from_le_bytes(read(WHAT, which, value)?);
                if !bytes.is_power_of_two() {
                    let sentence = format!("An alignment of {bytes} bytes is asked for.");
                    return Err(wrong(sentence, Status::INVALID_VALUE));
                }
                self.aligned[which as usize - 5] = bytes;
            }
            _ => return unknown(WHAT, which),
        }
        Ok(())
    }
}

/// What a handle names.
#[derive(Clone, Copy, Debug)]
pub enum Object {
    /// The library, on a GPU.
    Library {
        /// The GPU.
        gpu: usize,
    },
    /// A product.
    Operation(Operation),
    /// A matrix.
    Layout(Layout),
    /// What an algorithm may need.
    Preference(Preference),
}

/// The kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `cublasLtHandle_t`.
    Library,
    /// `cublasLtMatmulDesc_t`.
    Operation,
    /// `cublasLtMatrixLayout_t`.
    Layout,
    /// `cublasLtMatmulPreference_t`.
    Preference,
}

impl Object {
    fn kind(&self) -> Kind {
        match self {
            Object::Library { .. } => Kind::Library,
            Object::Operation(_) => Kind::Operation,
            Object::Layout(_) => Kind::Layout,
            Object::Preference(_) => Kind::Preference,
        }
    }
}

/// The objects that are alive. A handle is a number that no pointer looks like, and is never used again.
#[derive(Debug, Default)]
pub struct Objects {
    made: u64,
    alive: HashMap<u64, Object>,
}

static OBJECTS: LazyLock<Mutex<Objects>> = LazyLock::new(Mutex::default);

const HANDLE: u64 = 0xc8 << 56;

impl Objects {
    /// All of the process, for a moment.
    pub fn lock() -> MutexGuard<'static, Objects> {
        OBJECTS.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A handle for an object.
    pub fn add(&mut self, object: Object) -> u64 {
        self.made += 1;
        self.alive.insert(HANDLE | self.made, object);
        HANDLE | self.made
    }

    fn get(&mut self, handle: u64, kind: Kind) -> Result<&mut Object> {
        match self.alive.get_mut(&handle) {
            Some(object) if object.kind() == kind => Ok(object),
            Some(object) => {
                let sentence = format!("cuBLASLt is given a {:?} for a {kind:?}.", object.kind());
                Err(wrong(sentence, Status::INVALID_VALUE))
            }
            None => {
                let sentence = format!(
                    "cuBLASLt is given the handle {handle:#x} for a {kind:?}: it was destroyed, or never made."
                );
                Err(wrong(sentence, Status::INVALID_VALUE))
            }
        }
    }

    /// Ends an object.
    ///
    /// # Errors
    /// There is none such.
    pub fn remove(&mut self, handle: u64, kind: Kind) -> Result<()> {
        self.get(handle, kind)?;
        self.alive.remove(&handle);
        Ok(())
    }

    /// The GPU of the library's handle.
    ///
    /// # Errors
    /// There is none such.
    pub fn library(&mut self, handle: u64) -> Result<usize> {
        match self.get(handle, Kind::Library)? {
            Object::Library { gpu } => Ok(*gpu),
            _ => Err(Status::INVALID_VALUE),
        }
    }

    /// A product.
    ///
    /// # Errors
    /// There is none such.
    pub fn operation(&mut self, handle: u64) -> Result<&mut Operation> {
        match self.get(handle, Kind::Operation)? {
            Object::Operation(operation) => Ok(operation),
            _ => Err(Status::INVALID_VALUE),
        }
    }

    /// A matrix.
    ///
    /// # Errors
    /// There is none such.
    pub fn layout(&mut self, handle: u64) -> Result<&mut Layout> {
        match self.get(handle, Kind::Layout)? {
            Object::Layout(layout) => Ok(layout),
            _ => Err(Status::INVALID_VALUE),
        }
    }

    /// A preference.
    ///
    /// # Errors
    /// There is none such.
    pub fn preference(&mut self, handle: u64) -> Result<&mut Preference> {
        match self.get(handle, Kind::Preference)? {
            Object::Preference(preference) => Ok(preference),
            _ => Err(Status::INVALID_VALUE),
        }
    }
}
