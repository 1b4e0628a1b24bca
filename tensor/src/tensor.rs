//! [`Tensor`]: construction, and reading and writing of elements.

use crate::cpu::scratch::room;
use crate::layout::Layout;
use crate::storage::{Source, Storage, Target, Writer, across};
use crate::{DType, Device, Element, Error, Result, Shape, Value, dispatch_any};
use std::fmt;
use std::sync::Arc;

/// A multi-dimensional array: a shared storage and the [`Layout`] of a view of it.
///
/// A tensor is a value. Clones and views share storage, and nothing changes a storage that two
/// tensors share: [`make_mut`](Tensor::make_mut) copies first.
#[derive(Clone)]
pub struct Tensor {
    storage: Arc<Storage>,
    layout: Layout,
}

impl Tensor {
    // ---- construction ------------------------------------------------------------------------

    /// A tensor of `shape` with arbitrary contents.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::DeviceUnavailable`]; [`Error::InvalidShape`] for a tensor
    /// without elements that is not [addressable](Shape::is_addressable).
    pub fn empty(shape: impl Into<Shape>, dtype: DType, device: Device) -> Result<Tensor> {
        Tensor::allocate("empty", shape.into(), dtype, device)
    }

    /// As [`empty`](Tensor::empty), for the result of the operation `op`.
    pub(crate) fn allocate(
        op: &'static str,
        shape: Shape,
        dtype: DType,
        device: Device,
    ) -> Result<Tensor> {
        Tensor::allocate_by(op, shape, dtype, device, Writer::Kernel)
    }

    /// As [`allocate`](Tensor::allocate), for who writes it first.
    fn allocate_by(
        op: &'static str,
        shape: Shape,
        dtype: DType,
        device: Device,
        writer: Writer,
    ) -> Result<Tensor> {
        let len = shape.numel();
        if len == 0 {
            // Where there are elements, those that cannot be addressed are out of memory.
            shape.expect_addressable(op, dtype)?;
        }
        let storage = Storage::new(op, device, dtype, len, writer)?;
        Ok(Tensor {
            storage: Arc::new(storage),
            layout: Layout::contiguous(op, shape)?,
        })
    }

    /// A tensor of rank 0.
    ///
    /// # Errors
    /// As [`empty`](Tensor::empty).
    pub fn scalar<T: Value>(value: T, device: Device) -> Result<Tensor> {
        Tensor::from_slice(&[value], (), device).map_err(|error| error.of("scalar"))
    }

    /// Copies a slice, in row-major order.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] where the shape has another number of elements; as
    /// [`empty`](Tensor::empty).
    pub fn from_slice<T: Value>(
        data: &[T],
        shape: impl Into<Shape>,
        device: Device,
    ) -> Result<Tensor> {
        let shape = shape.into();
        if shape.numel() != data.len() {
            return Err(Error::InvalidShape {
                op: "from_slice",
                reason: format!(
                    "it has {} elements, the data has {}",
                    shape.numel(),
                    data.len()
                ),
                shape,
            });
        }
        let (op, dtype) = ("from_slice", T::Element::DTYPE);
        let mut out = Tensor::allocate_by(op, shape, dtype, device, Writer::Transfer)?;
        let data = Source::Host(bytemuck::cast_slice(data));
        across(op, data, Target::Tensor(&mut out, 0))?;
        Ok(out)
    }

    /// As [`from_slice`](Tensor::from_slice), from a vector.
    ///
    /// # Errors
    /// As [`from_slice`](Tensor::from_slice).
    pub fn from_vec<T: Value>(
        data: Vec<T>,
        shape: impl Into<Shape>,
        device: Device,
    ) -> Result<Tensor> {
        Tensor::from_slice(&data, shape, device).map_err(|error| error.of("from_vec"))
    }

    // ---- what it is --------------------------------------------------------------------------

    /// The extents, outermost first.
    pub fn shape(&self) -> &Shape {
        self.layout.shape()
    }

    /// The extents as a slice.
    pub fn dims(&self) -> &[usize] {
        self.layout.shape()
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.dims().len()
    }

    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.shape().numel()
    }

    /// Shape, strides and offset.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.storage.dtype()
    }

    /// Where it lives.
    pub fn device(&self) -> Device {
        self.storage.device()
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.layout.is_contiguous()
    }

    /// Whether no other tensor shares the storage, so that [`make_mut`](Tensor::make_mut) will
    /// not copy a contiguous tensor.
    pub fn is_unique(&self) -> bool {
        Arc::strong_count(&self.storage) == 1
    }

    /// Where the first element lies in the memory of the tensor's device: for the tests which say
    /// that tensors stay where they are, on any device, and for nobody else. It is a number and no
    /// pointer. To ask for it reads no element, waits for nothing and orders nothing. A tensor
    /// without elements lies nowhere, and its number says nothing.
    #[doc(hidden)]
    pub fn address(&self) -> u64 {
        self.storage.address() + (self.layout.offset() * self.dtype().size()) as u64
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn shared(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// The same storage under another layout.
    pub(crate) fn with_layout(&self, layout: Layout) -> Tensor {
        Tensor {
            storage: Arc::clone(&self.storage),
            layout,
        }
    }

    // ---- reading and writing elements --------------------------------------------------------

    /// The elements as a slice, without a copy.
    ///
    /// # Errors
    /// [`Error::DTypeMismatch`] where `T` is another type, [`Error::NotContiguous`] for a view
    /// with gaps, [`Error::DeviceUnavailable`] for a tensor that the host cannot address.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.expect_dtype::<T>("as_slice")?;
        self.expect_contiguous("as_slice")?;
        let s = self.storage.on_host("as_slice")?;
        Ok(&s.as_slice()[self.layout.offset()..][..self.numel()])
    }

    /// The elements' bytes, without a copy.
    ///
    /// # Errors
    /// As [`as_slice`](Tensor::as_slice).
    pub fn as_bytes(&self) -> Result<&[u8]> {
        self.expect_contiguous("as_bytes")?;
        let s = self.storage.on_host("as_bytes")?;
        let size = self.dtype().size();
        Ok(&s.as_raw::<u8>()[self.layout.offset() * size..][..self.numel() * size])
    }

    /// The elements for writing. Copies first where another tensor shares the storage or the view
    /// has gaps; afterwards the tensor is contiguous and unique.
    ///
    /// # Errors
    /// [`Error::DTypeMismatch`] where `T` is another type, [`Error::DeviceUnavailable`] for a tensor
    /// that the host cannot address; as [`empty`](Tensor::empty).
    pub fn make_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        self.expect_dtype::<T>("make_mut")?;
        Ok(bytemuck::cast_slice_mut(self.host_bytes_mut("make_mut")?))
    }

    /// The elements' bytes for writing, as [`make_mut`](Tensor::make_mut). Of a `bool`, every byte
    /// but 0 is true.
    ///
    /// # Errors
    /// As [`make_mut`](Tensor::make_mut).
    pub fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        self.host_bytes_mut("bytes_mut")
    }

    pub(crate) fn host_bytes_mut(&mut self, op: &'static str) -> Result<&mut [u8]> {
        self.own(op)?;
        let size = self.dtype().size();
        let (offset, len) = (self.layout.offset(), self.numel());
        let Some(storage) = Arc::get_mut(&mut self.storage) else {
            unreachable!("{op}: the tensor has just been made unique");
        };
        let bytes = storage.on_host_mut(op)?.as_raw_mut::<u8>();
        Ok(&mut bytes[offset * size..][..len * size])
    }

    /// Makes the tensor contiguous and the only holder of its storage on behalf of the operation
    /// `op`, so that writing to it cannot fail any more.
    pub(crate) fn own(&mut self, op: &'static str) -> Result<()> {
        if !self.owns() {
            let copy = self.copy_to(op, self.device())?;
            self.replace(copy);
        }
        Ok(())
    }

    /// Puts a copy in place of the tensor, which could not be written in place.
    pub(crate) fn replace(&mut self, copy: Tensor) {
        if !self.is_unique() {
            self.storage.account().copied();
        }
        *self = copy;
    }

    /// As [`own`](Tensor::own), where the contents do not matter any more.
    pub(crate) fn renew(&mut self, op: &'static str) -> Result<()> {
        if !self.owns() {
            let fresh = Tensor::allocate(op, self.shape().clone(), self.dtype(), self.device())?;
            self.replace(fresh);
        }
        Ok(())
    }

    /// Whether the tensor is contiguous and nobody else holds its storage.
    fn owns(&mut self) -> bool {
        self.is_contiguous() && Arc::get_mut(&mut self.storage).is_some()
    }

    /// Copies the elements out, in row-major order.
    ///
    /// # Errors
    /// [`Error::DTypeMismatch`] where `T` is another type; as [`empty`](Tensor::empty).
    pub fn to_vec<T: Value>(&self) -> Result<Vec<T>> {
        const OP: &str = "to_vec";
        self.expect_dtype::<T::Element>(OP)?;
        let len = self.numel();
        let mut vec = room(len).map_err(|e| e.on(OP, self.device()))?;
        if self.device().is_cpu() && self.is_contiguous() {
            // Without filling the vector first.
            vec.extend_from_slice(self.as_slice().map_err(|error| error.of(OP))?);
            return Ok(T::of_vec(vec));
        }
        vec.resize(len, bytemuck::Zeroable::zeroed());
        let target = Target::Host(bytemuck::cast_slice_mut(&mut vec));
        across(OP, Source::Tensor(self), target)?;
        Ok(T::of_vec(vec))
    }

    /// The value of a tensor with a single element, as a `T` that holds it exactly, whatever the
    /// element type: `f64` for every float and for integers up to 2⁵³, `i64` for every integer, `bool` for 0 and 1.
    ///
    /// ```
    /// # use phalanx_tensor::{Device, Tensor};
    /// let t = Tensor::scalar(i64::MAX, Device::cpu(0))?;
    /// assert_eq!(t.item::<i64>()?, i64::MAX);
    /// let e = t.item::<f64>().unwrap_err();
    /// assert_eq!(e.to_string(), "item: 9223372036854775807 is no f64");
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidShape`] where there is not exactly one element; [`Error::InvalidArgument`]
    /// where `T` does not hold the value: nothing is rounded.
    pub fn item<T: Value>(&self) -> Result<T> {
        if self.numel() != 1 {
            return Err(Error::InvalidShape {
                op: "item",
                shape: self.shape().clone(),
                reason: "needs exactly one element".into(),
            });
        }
        let mut word = 0u64; // aligned for every element type
        let bytes = &mut bytemuck::bytes_of_mut(&mut word)[..self.dtype().size()];
        across("item", Source::Tensor(self), Target::Host(bytes))?;
        let value = dispatch_any!(self.dtype(), S => {
            bytemuck::pod_read_unaligned::<S>(bytes).number()
        });
        let element = T::Element::exact(value);
        let element = element.ok_or_else(|| value.is_no::<T::Element>("item"))?;
        Ok(T::of(element))
    }

    /// The same elements in row-major order without gaps: `self` where it is so already, else a
    /// copy.
    ///
    /// # Errors
    /// As [`empty`](Tensor::empty).
    pub fn contiguous(&self) -> Result<Tensor> {
        self.contiguous_for("contiguous")
    }

    /// As [`contiguous`](Tensor::contiguous), on behalf of the operation `op`.
    pub(crate) fn contiguous_for(&self, op: &'static str) -> Result<Tensor> {
        if self.is_contiguous() {
            Ok(self.clone())
        } else {
            self.copy_to(op, self.device())
        }
    }

    /// The same elements on `device`: `self` where it is there already, else a copy. A copy between two
    /// cards goes directly where one can access the other's memory, and the program waits for no copy
    /// but that from a card to the host.
    ///
    /// ```
    /// # use phalanx_tensor::{DType, Device, Tensor};
    /// let t = Tensor::zeros([3], DType::F32, Device::cpu(0))?;
    /// assert_eq!(t.to_device(Device::cpu(1))?.device(), Device::cpu(1));
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`empty`](Tensor::empty).
    pub fn to_device(&self, device: Device) -> Result<Tensor> {
        if self.device() == device {
            Ok(self.clone())
        } else {
            self.copy_to("to_device", device)
        }
    }

    /// A contiguous copy with a storage of its own.
    pub(crate) fn copy_to(&self, op: &'static str, device: Device) -> Result<Tensor> {
        let writer = match device == self.device() {
            true => Writer::Kernel,
            false => Writer::Transfer,
        };
        let storage = Storage::new(op, device, self.dtype(), self.numel(), writer)?;
        let mut copy = Tensor {
            storage: Arc::new(storage),
            layout: Layout::contiguous(op, self.shape().clone())?,
        };
        across(op, Source::Tensor(self), Target::Tensor(&mut copy, 0))?;
        Ok(copy)
    }

    // ---- checks that operations share --------------------------------------------------------
}

impl fmt::Debug for Tensor {
    /// Shape, type and device, and the elements of a small tensor in the host's memory. This never
    /// waits for a card.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Tensor({}, {}, {}",
            self.shape(),
            self.dtype(),
            self.device()
        )?;
        if self.numel() <= 16
            && self.device().is_cpu()
            && let Ok(t) = self.contiguous()
        {
            let values = dispatch_any!(t.dtype(), T => t.as_slice::<T>().map(|s| format!("{s:?}")));
            write!(f, ", {}", values.unwrap_or_default())?;
        }
        f.write_str(")")
    }
}
