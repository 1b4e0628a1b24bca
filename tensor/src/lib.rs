//! N-dimensional tensors.
