//! [`State`]: named tensors that are saved and restored, as safetensors.

use crate::error::{Error, Result};
use crate::nn::Module;
use crate::nn::module::{Count, Item, aliases, walk};
use crate::slot::set_all;
use crate::whole_file;
use phalanx_tensor::{DType, Device, Shape, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

/// Tensors by dotted name: a module's parameters, buffers and counts, an optimizer's momenta, or both under
/// prefixes. The file format is safetensors, with PyTorch's names.
///
/// ```
/// use phalanx_autograd::State;
/// use phalanx_autograd::nn::{Factory, Linear, Module};
/// use phalanx_tensor::Device;
///
/// let mut f = Factory::new(Device::cpu(0), 1);
/// let (a, b) = (Linear::new(2, 3, &mut f)?, Linear::new(2, 3, &mut f)?);
/// let bytes = State::of(&a)?.to_bytes()?;
/// State::from_bytes(&bytes, Device::cpu(0))?.load_into(&b)?;
/// assert_eq!(
///     a.parameters()[0].value()?.to_vec::<f32>()?,
///     b.parameters()[0].value()?.to_vec::<f32>()?,
/// );
/// # Ok::<(), phalanx_autograd::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct State {
    tensors: BTreeMap<String, Tensor>,
}

impl State {
    /// No tensors.
    pub fn new() -> State {
        State::default()
    }

    /// The parameters, buffers and counts of a module; shared ones once, under their first name.
    /// Copies them: the state holds the values as they are now, and training can go on.
    ///
    /// # Errors
    /// As [`Param::value`](crate::Param::value);
    /// [`Error::InvalidArgument`] where two parts of the module have one name;
    /// [`Error::Unsavable`] for a count of 2⁵³ or more.
    pub fn of<M: Module + ?Sized>(module: &M) -> Result<State> {
        let mut state = State::new();
        for (name, param) in module.named_parameters() {
            state.insert_new(name, param.value()?)?;
        }
        for (name, buffer) in module.named_buffers() {
            state.insert_new(name, buffer.value()?)?;
        }
        for (name, count) in counts(module) {
            let count = saved_count(&name, count)?;
            state.insert_new(name, count)?;
        }
        Ok(state)
    }

    fn insert_new(&mut self, name: String, tensor: Tensor) -> Result<()> {
        match self.tensors.entry(name) {
            Entry::Vacant(place) => {
                place.insert(tensor);
                Ok(())
            }
            Entry::Occupied(taken) => Err(Error::InvalidArgument {
                op: "State::of",
                reason: format!("two parts of the module have the name `{}`", taken.key()),
            }),
        }
    }

    /// Writes the values into a module, in place: its tensors stay where they are, on their devices,
    /// and it keeps none of the state's. Names, shapes and element types must fit exactly, both ways;
    /// a shared parameter may be there under any of its names, or under all. Only a [`Count`] may be
    /// missing, as it is from PyTorch's files: it stays as it is. Nothing is changed where something
    /// does not fit.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::UnexpectedTensor`], [`Error::SavedMismatch`];
    /// [`Error::Format`] for a count below 0, or of 2⁵³ or more.
    pub fn load_into<M: Module + ?Sized>(&self, module: &M) -> Result<()> {
        let aliases = aliases(module);
        let find = |name: &str| {
            self.tensors.get(name).or_else(|| {
                let mut others = aliases.iter().filter(|(_, first)| first == name);
                others.find_map(|(alias, _)| self.tensors.get(alias))
            })
        };
        let checked = |name: &str, shape: &Shape, dtype: DType| {
            let saved = find(name).ok_or_else(|| Error::MissingTensor { name: name.into() })?;
            expect_like(name, saved, shape, dtype)?;
            Ok::<_, Error>(saved)
        };
        let (params, buffers) = (module.named_parameters(), module.named_buffers());
        let (mut slots, mut values) = (Vec::new(), Vec::new());
        for (name, p) in &params {
            values.push(checked(name, p.shape(), p.dtype())?);
            slots.push(p.slot());
        }
        for (name, b) in &buffers {
            values.push(checked(name, b.shape(), b.dtype())?);
            slots.push(b.slot());
        }
        let mut counts: HashMap<String, Option<u64>> = HashMap::new();
        for_counts(module, &mut |name, _| {
            _ = counts.insert(name.to_owned(), None)
        });
        for (name, count) in &mut counts {
            *count = self.saved_count(name)?;
        }
        for name in self.tensors.keys() {
            let known = params.iter().any(|(n, _)| n == name)
                || counts.contains_key(name)
                || buffers.iter().any(|(n, _)| n == name)
                || aliases.iter().any(|(alias, _)| alias == name);
            if !known {
                return Err(Error::UnexpectedTensor { name: name.clone() });
            }
        }
        set_all(&slots, &values)?;
        for_counts(module, &mut |name, count| {
            if let Some(&Some(saved)) = counts.get(name) {
                count.set(saved);
            }
        });
        Ok(())
    }

    fn saved_count(&self, name: &str) -> Result<Option<u64>> {
        let Some(saved) = self.tensors.get(name) else {
            return Ok(None);
        };
        expect_like(name, saved, &Shape::from(()), DType::I64)?;
        loaded_count(name, saved).map(Some)
    }

    /// Adds a tensor, in place of one of the same name.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.tensors.insert(name.into(), tensor);
    }

    /// A tensor by its name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Takes a tensor out.
    pub fn take(&mut self, name: &str) -> Option<Tensor> {
        self.tensors.remove(name)
    }

    /// Names and tensors, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, t)| (name.as_str(), t))
    }

    /// How many tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Adds all of another state under the prefix `prefix.`, so that one file holds a model and
    /// its optimizer.
    pub fn nest(&mut self, prefix: &str, other: State) {
        let named = other.tensors.into_iter();
        self.tensors
            .extend(named.map(|(name, t)| (format!("{prefix}.{name}"), t)));
    }

    /// Takes out what stands under the prefix `prefix.`.
    pub fn unnest(&mut self, prefix: &str) -> State {
        let prefix = format!("{prefix}.");
        let mut out = State::new();
        self.tensors.retain(|name, tensor| {
            let Some(rest) = name.strip_prefix(&prefix) else {
                return true;
            };
            out.insert(rest, tensor.clone());
            false
        });
        out
    }

    /// The state as the bytes of a safetensors file. Equal states have equal bytes.
    ///
    /// # Errors
    /// [`Error::Unsavable`] for what [`from_bytes`](State::from_bytes) would refuse; as
    /// [`Tensor::to_device`].
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        if self.tensors.contains_key(RESERVED) {
            return Err(Error::Unsavable {
                reason: format!(
                    "a tensor is named `{RESERVED}`, which the format keeps for itself"
                ),
            });
        }
        let mut on_host = Vec::with_capacity(self.tensors.len());
        for (name, t) in &self.tensors {
            // Where the host can address the tensor, no copy is made.
            let t = match t.device() {
                Device::Cpu(_) => t.contiguous()?,
                _ => t.to_device(Device::cpu(0))?.contiguous()?,
            };
            let saved = saved_dtype(t.dtype());
            let t = match t.dtype() {
                DType::Bool => t.cast(DType::U8)?, // 0 or 1, whatever bytes the tensor has
                _ => t,
            };
            on_host.push((name, saved, t));
        }
        let mut views = Vec::with_capacity(on_host.len());
        for (name, saved, t) in &on_host {
            let view = TensorView::new(*saved, t.dims().to_vec(), t.as_bytes()?);
            views.push((name, view.map_err(unsavable)?));
        }
        let bytes = safetensors::serialize(views, None).map_err(unsavable)?;
        // Whatever loading refuses is refused here. Only the header is read.
        SafeTensors::read_metadata(&bytes).map_err(unsavable)?;
        Ok(bytes)
    }

    /// Reads the bytes of a safetensors file; the tensors lie on `device`.
    ///
    /// # Errors
    /// [`Error::Format`] for bytes that are no safetensors or hold a type that tensors do not
    /// have; as [`Tensor::empty`].
    pub fn from_bytes(bytes: &[u8], device: Device) -> Result<State> {
        let file = SafeTensors::deserialize(bytes).map_err(format)?;
        let mut state = State::new();
        for (name, view) in file.iter() {
            let dtype = match view.dtype() {
                Dtype::F32 => DType::F32,
                Dtype::F64 => DType::F64,
                Dtype::BF16 => DType::BF16,
                Dtype::F16 => DType::F16,
                Dtype::I64 => DType::I64,
                Dtype::I32 => DType::I32,
                Dtype::U8 => DType::U8,
                Dtype::BOOL => DType::Bool,
                other => {
                    return Err(Error::Format {
                        reason: format!("`{name}` has elements of type {other:?}"),
                    });
                }
            };
            let mut tensor = Tensor::empty(view.shape(), dtype, Device::cpu(0))?;
            let bytes = tensor.bytes_mut()?;
            bytes.copy_from_slice(view.data());
            if dtype == DType::Bool {
                // A file may hold any byte.
                bytes.iter_mut().for_each(|b| *b = u8::from(*b != 0));
            }
            state.insert(name, tensor.to_device(device)?);
        }
        Ok(state)
    }

    /// Writes a safetensors file. The file is complete or not there, even where the power fails, and
    /// also where several ranks save to one path at once (the last one stays): it is written beside,
    /// as `phalanx-<process>-<number>.partial`, brought to the disk and renamed. Where that fails,
    /// nothing is left over, and a file that was there before stays.
    ///
    /// # Errors
    /// [`Error::File`]; as [`to_bytes`](State::to_bytes), inside [`Error::InFile`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let bytes = self.to_bytes().map_err(|error| error.in_file(path))?;
        whole_file::write(path, &bytes).map_err(|error| Error::File {
            path: path.into(),
            error,
        })
    }

    /// Reads a safetensors file; the tensors lie on `device`.
    ///
    /// # Errors
    /// [`Error::File`]; as [`from_bytes`](State::from_bytes), inside [`Error::InFile`].
    pub fn load(path: impl AsRef<Path>, device: Device) -> Result<State> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(|error| Error::File {
            path: path.into(),
            error,
        })?;
        State::from_bytes(&bytes, device).map_err(|error| error.in_file(path))
    }
}

/// The name under which the format keeps remarks about the whole file.
const RESERVED: &str = "__metadata__";

/// Where counts and steps end: below it `f64` knows every one of them, and nothing trains so long.
const TOO_MANY: u64 = 1 << 53;

/// A count as a tensor to save, an `i64` on the host.
///
/// # Errors
/// [`Error::Unsavable`] where it could not be loaded again.
pub(crate) fn saved_count(name: &str, count: u64) -> Result<Tensor> {
    if count >= TOO_MANY {
        return Err(Error::Unsavable {
            reason: format!("`{name}` is {count}; a count should be less than 2^53"),
        });
    }
    Ok(Tensor::from_slice(&[count as i64], (), Device::cpu(0))?)
}

/// The inverse of [`saved_count`]; a tensor of one element, of any type, since PyTorch saves steps as
/// `f32`.
///
/// # Errors
/// [`Error::SavedMismatch`] for more elements; [`Error::Format`] where it is no count.
pub(crate) fn loaded_count(name: &str, saved: &Tensor) -> Result<u64> {
    let count = loaded_number(name, saved)?;
    // What an i64 of 2⁵³ or more loses on the way leaves it too large.
    if count >= 0.0 && count < TOO_MANY as f64 && count.fract() == 0.0 {
        return Ok(count as u64);
    }
    Err(Error::Format {
        reason: format!(
            "`{name}` is {count}; it should be a whole number, at least 0 and less than 2^53"
        ),
    })
}

/// The number in a tensor of one element.
///
/// # Errors
/// [`Error::SavedMismatch`] for more elements, or none.
pub(crate) fn loaded_number(name: &str, saved: &Tensor) -> Result<f64> {
    if saved.numel() != 1 {
        expect_like(name, saved, &Shape::from(()), saved.dtype())?;
    }
    // Rounded where it must be: what is saved as an integer of 2⁵³ or more is no number that is wanted.
    Ok(saved.cast(DType::F64)?.item()?)
}

fn expect_like(name: &str, saved: &Tensor, shape: &Shape, dtype: DType) -> Result<()> {
    if saved.shape() == shape && saved.dtype() == dtype {
        return Ok(());
    }
    Err(Error::SavedMismatch {
        name: name.into(),
        shape: saved.shape().clone(),
        dtype: saved.dtype(),
        wanted_shape: shape.clone(),
        wanted_dtype: dtype,
    })
}

/// Shows every count of a module, under each of its names.
fn for_counts<M: Module + ?Sized>(module: &M, see: &mut dyn FnMut(&str, &Count)) {
    walk(module, &mut |name, item| {
        if let Item::Count(count) = item {
            see(name, count);
        }
    });
}

/// The counts of a module, each once, by its first name.
fn counts<M: Module + ?Sized>(module: &M) -> Vec<(String, u64)> {
    let (mut seen, mut out) = (HashSet::new(), Vec::new());
    for_counts(module, &mut |name, count| {
        if seen.insert(std::ptr::from_ref(count)) {
            out.push((name.to_owned(), count.get()));
        }
    });
    out
}

fn unsavable(error: safetensors::SafeTensorError) -> Error {
    Error::Unsavable {
        reason: error.to_string(),
    }
}

fn format(error: safetensors::SafeTensorError) -> Error {
    Error::Format {
        reason: error.to_string(),
    }
}

fn saved_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::U8 => Dtype::U8,
        DType::Bool => Dtype::BOOL,
    }
}
