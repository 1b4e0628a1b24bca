//! What an operation hands to [`on`](super::on): tensors that are read, written or updated, alone,
//! optional or in lists, and numbers.

use crate::ops::Scalar;
use crate::{Result, Tensor};
use std::borrow::{Borrow, BorrowMut};

/// What a kernel does with an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Reads it.
    Read,
    /// Writes every element of it, and does not read it.
    Write,
    /// Reads and writes it, or writes a part of it.
    Update,
}

/// One operand, or several.
pub(crate) trait Operand {
    /// What a kernel gets: `&Tensor` for what it reads, `&mut Tensor` for what it writes.
    type Ready;

    /// Calls `f` with each tensor.
    fn each(&self, f: &mut impl FnMut(&Tensor, Use) -> Result<()>) -> Result<()>;

    /// Makes what is written ready to be written: contiguous, and held by nobody else.
    fn prepare(&mut self, op: &'static str) -> Result<()>;

    /// Hands it over.
    fn ready(self) -> Self::Ready;
}

impl<'a> Operand for &'a Tensor {
    type Ready = &'a Tensor;

    #[inline(always)]
    fn each(&self, f: &mut impl FnMut(&Tensor, Use) -> Result<()>) -> Result<()> {
        f(self, Use::Read)
    }

    #[inline(always)]
    fn prepare(&mut self, _: &'static str) -> Result<()> {
        Ok(())
    }

    #[inline(always)]
    fn ready(self) -> Self::Ready {
        self
    }
}

impl<O: Operand> Operand for Option<O> {
    type Ready = Option<O::Ready>;

    #[inline(always)]
    fn each(&self, f: &mut impl FnMut(&Tensor, Use) -> Result<()>) -> Result<()> {
        self.as_ref().map_or(Ok(()), |operand| operand.each(f))
    }

    #[inline(always)]
    fn prepare(&mut self, op: &'static str) -> Result<()> {
        self.as_mut().map_or(Ok(()), |operand| operand.prepare(op))
    }

    #[inline(always)]
    fn ready(self) -> Self::Ready {
        self.map(O::ready)
    }
}

impl<'a> Operand for Scalar<'a> {
    type Ready = Scalar<'a>;

    #[inline(always)]
    fn each(&self, f: &mut impl FnMut(&Tensor, Use) -> Result<()>) -> Result<()> {
        match self {
            Scalar::Host(_) => Ok(()),
            Scalar::Device(tensor) => f(tensor, Use::Read),
        }
    }

    #[inline(always)]
    fn prepare(&mut self, _: &'static str) -> Result<()> {
        Ok(())
    }

    #[inline(always)]
    fn ready(self) -> Self::Ready {
        self
    }
}

/// A list of tensors that are read.
impl<'a, T: Borrow<Tensor>> Operand for &'a [T] {
    type Ready = &'a [T];

    fn each(&self, f: &mut impl FnMut(&Tensor, Use) -> Result<()>) -> Result<()> {
        self.iter().try_for_each(|t| f(t.borrow(), Use::Read))
    }

    fn prepare(&mut self, _: &'static str) -> Result<()> {
        Ok(())
    }

    #[inline(always)]
    fn ready(self) -> Self::Ready {
        self
    }
}

/// A tensor whose contents do not matter: where somebody shares it, it gets memory of its own.
pub(crate) fn out(tensor: &mut Tensor) -> Out<'_> {
    Out(tensor)
}

/// A tensor that is updated in place: where somebody shares it, it is copied first.
pub(crate) fn inout(tensor: &mut Tensor) -> Inout<'_> {
    Inout(tensor)
}

/// A list of tensors, each as [`inout`] has it.
pub(crate) fn inouts<T: BorrowMut<Tensor>>(tensors: &mut [T]) -> Inouts<'_, T> {
    Inouts(tensors)
}

/// See [`out`].
pub(crate) struct Out<'a>(&'a mut Tensor);
/// See [`inout`].
pub(crate) struct Inout<'a>(&'a mut Tensor);
/// See [`inouts`].
pub(crate) struct Inouts<'a, T>(&'a mut [T]);

impl<'a> Operand for Out<'a> {
    type Ready = &'a mut Tensor;

    #[inline(always)]
    fn each(&self, f: &mut impl FnMut(&Tensor, Use) -> Result<()>) -> Result<()> {
        f(self.0, Use::Write)
    }

    #[inline(always)]
    fn prepare(&mut self, op: &'static str) -> Result<()> {
        self.0.renew(op)
    }

    #[inline(always)]
    fn ready(self) -> Self::Ready {
        self.0
    }
}

impl<'a> Operand for Inout<'a> {
    type Ready = &'a mut Tensor;

    #[inline(always)]
    fn each(&self, f: &mut impl FnMut(&Tensor, Use) -> Result<()>) -> Result<()> {
        f(self.0, Use::Update)
    }

    #[inline(always)]
    fn prepare(&mut self, op: &'static str) -> Result<()> {
        self.0.own(op)
    }

    #[inline(always)]
    fn ready(self) -> Self::Ready {
        self.0
    }
}

impl<'a, T: BorrowMut<Tensor>> Operand for Inouts<'a, T> {
    type Ready = &'a mut [T];

    fn each(&self, f: &mut impl FnMut(&Tensor, Use) -> Result<()>) -> Result<()> {
        self.0.iter().try_for_each(|t| f(t.borrow(), Use::Update))
    }

    fn prepare(&mut self, op: &'static str) -> Result<()> {
        self.0.iter_mut().try_for_each(|t| t.borrow_mut().own(op))
    }

    #[inline(always)]
    fn ready(self) -> Self::Ready {
        self.0
    }
}

/// All operands of a kernel.
macro_rules! tuples {
    ($($($name:ident)+;)+) => {
        $(
            #[allow(non_snake_case)] // the type's name is the value's
            impl<$($name: Operand),+> Operand for ($($name,)+) {
                type Ready = ($($name::Ready,)+);

                #[inline(always)]
                fn each(&self, f: &mut impl FnMut(&Tensor, Use) -> Result<()>) -> Result<()> {
                    let ($($name,)+) = self;
                    $($name.each(f)?;)+
                    Ok(())
                }

                #[inline(always)]
                fn prepare(&mut self, op: &'static str) -> Result<()> {
                    let ($($name,)+) = self;
                    $($name.prepare(op)?;)+
                    Ok(())
                }

                #[inline(always)]
                fn ready(self) -> Self::Ready {
                    let ($($name,)+) = self;
                    ($($name.ready(),)+)
                }
            }
        )+
    };
}
tuples! {
    A;
    A B;
    A B C;
    A B C D;
    A B C D E;
    A B C D E F;
    A B C D E F G;
    A B C D E F G H;
    A B C D E F G H I;
}
