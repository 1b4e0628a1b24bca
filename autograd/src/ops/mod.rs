//! The operations of [`Var`](crate::Var), family by family as in `phalanx_tensor::ops`: each is the
//! tensor's method of the same name, with a [`Vjp`](crate::Vjp) beside it.
