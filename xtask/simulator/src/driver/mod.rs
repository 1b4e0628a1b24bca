//! The driver's interface: the functions that a program finds under the names of `libcuda`.
//!
//! Each function does what the CUDA 13.0 driver's documentation says of it, and returns a `CUresult`. The names without
//! a suffix and those with `_v2` differ as they do there.

pub mod alloc;
pub mod attributes;
pub mod context;
pub mod copy;
pub mod counts;
pub mod event;
pub mod handles;
pub mod init;
pub mod launch;
pub mod lookup;
pub mod module;
pub mod pinned;
pub mod pointers;
pub mod pool;
pub mod set;
pub mod stream;
pub mod unsupported;

/// Functions of the interface: each body gives a `Result<()>`, and its error becomes the code that comes back.
macro_rules! api {
    ($($name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        #[doc = concat!("`", stringify!($name), "` of the driver's interface.")]
        ///
        /// # Safety
        /// As in the driver's documentation: pointers point to what it says, or are null.
        #[unsafe(no_mangle)]
        #[allow(clippy::too_many_arguments)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> u32 {
            let call = || -> $crate::device::code::Result<()> { $body };
            match call() {
                Ok(()) => 0,
                Err(code) => code.0,
            }
        }
    )*};
}
pub(crate) use api;
