//! [`State`]: named tensors that are saved and restored, as safetensors.

use crate::error::{Error, Result};
use crate::nn::Module;
use crate::nn::module::aliases;
use phalanx_tensor::{DType, Device, Shape, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

/// Tensors by dotted name: a module's parameters and buffers, an optimizer's momenta, or both under
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
///     a.parameters()[0].value().to_vec::<f32>()?,
///     b.parameters()[0].value().to_vec::<f32>()?,
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

    /// The parameters and buffers of a module; shared ones once, under their first name. Costs no
    /// copy: the state holds the values as they are now.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where two parts of the module have one name.
    pub fn of<M: Module + ?Sized>(module: &M) -> Result<State> {
        let mut state = State::new();
        for (name, param) in module.named_parameters() {
            state.insert_new(name, param.value())?;
        }
        for (name, buffer) in module.named_buffers() {
            state.insert_new(name, buffer.value())?;
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

    /// Puts the values into a module, each on the device where the module's own is. Names, shapes
    /// and element types must fit exactly, both ways; a shared parameter may be there under any
    /// of its names, or under all. Nothing is changed where something does not fit.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::UnexpectedTensor`], [`Error::SavedMismatch`].
    pub fn load_into<M: Module + ?Sized>(&self, module: &M) -> Result<()> {
        let aliases = aliases(module);
        let find = |name: &str| {
            self.tensors.get(name).or_else(|| {
                let mut others = aliases.iter().filter(|(_, first)| first == name);
                others.find_map(|(alias, _)| self.tensors.get(alias))
            })
        };
        let checked = |name: &str, shape: &Shape, dtype: DType, device: Device| {
            let saved = find(name).ok_or_else(|| Error::MissingTensor { name: name.into() })?;
            if saved.shape() != shape || saved.dtype() != dtype {
                return Err(Error::SavedMismatch {
                    name: name.into(),
                    shape: saved.shape().clone(),
                    dtype: saved.dtype(),
                    wanted_shape: shape.clone(),
                    wanted_dtype: dtype,
                });
            }
            Ok(saved.to_device(device)?)
        };
        let (params, buffers) = (module.named_parameters(), module.named_buffers());
        let mut values = Vec::with_capacity(params.len() + buffers.len());
        for (name, p) in &params {
            values.push(checked(name, p.shape(), p.dtype(), p.device())?);
        }
        for (name, b) in &buffers {
            values.push(checked(name, b.shape(), b.dtype(), b.value().device())?);
        }
        for name in self.tensors.keys() {
            let known = params.iter().any(|(n, _)| n == name)
                || buffers.iter().any(|(n, _)| n == name)
                || aliases.iter().any(|(alias, _)| alias == name);
            if !known {
                return Err(Error::UnexpectedTensor { name: name.clone() });
            }
        }
        let mut values = values.into_iter();
        for ((_, p), value) in params.iter().zip(&mut values) {
            p.set(value)?;
        }
        for ((_, b), value) in buffers.iter().zip(&mut values) {
            b.set(value)?;
        }
        Ok(())
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
    /// [`Error::Format`]; as [`Tensor::to_device`].
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut on_host = Vec::with_capacity(self.tensors.len());
        for (name, t) in &self.tensors {
            // Where the host can address the tensor, no copy is made.
            let t = match t.device() {
                Device::Cpu(_) => t.contiguous()?,
                _ => t.to_device(Device::cpu(0))?.contiguous()?,
            };
            on_host.push((name, t));
        }
        let mut views = Vec::with_capacity(on_host.len());
        for (name, t) in &on_host {
            let view = TensorView::new(saved_dtype(t.dtype()), t.dims().to_vec(), t.as_bytes()?);
            views.push((name, view.map_err(format)?));
        }
        safetensors::serialize(views, None).map_err(format)
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
                Dtype::U8 => DType::U8,
                other => {
                    return Err(Error::Format {
                        reason: format!("`{name}` has elements of type {other:?}"),
                    });
                }
            };
            let mut tensor = Tensor::empty(view.shape(), dtype, Device::cpu(0))?;
            tensor.bytes_mut()?.copy_from_slice(view.data());
            state.insert(name, tensor.to_device(device)?);
        }
        Ok(state)
    }

    /// Writes a safetensors file. The file is complete or not there: it is written beside and
    /// renamed.
    ///
    /// # Errors
    /// [`Error::File`]; as [`to_bytes`](State::to_bytes).
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let bytes = self.to_bytes()?;
        std::fs::write(&partial, bytes)
            .and_then(|()| std::fs::rename(&partial, path))
            .map_err(|source| Error::File {
                path: path.into(),
                source,
            })
    }

    /// Reads a safetensors file; the tensors lie on `device`.
    ///
    /// # Errors
    /// [`Error::File`]; as [`from_bytes`](State::from_bytes).
    pub fn load(path: impl AsRef<Path>, device: Device) -> Result<State> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|source| Error::File {
            path: path.into(),
            source,
        })?;
        State::from_bytes(&bytes, device)
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
        DType::U8 => Dtype::U8,
    }
}
