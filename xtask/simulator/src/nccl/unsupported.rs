//! The functions of the interface that are not simulated: each says so, and returns `ncclInvalidUsage`.

use super::{Status, wrong};

macro_rules! unsupported {
    ($($name:ident)*) => {$(
        #[doc = concat!("`", stringify!($name), "`, which is not simulated, whatever its arguments are.")]
        #[unsafe(no_mangle)]
        pub extern "C" fn $name() -> u32 {
            let sentence = concat!(stringify!($name), " was called, which is not simulated.");
            wrong(sentence, Status::INVALID_USAGE).0
        }
    )*};
}

#[rustfmt::skip]
unsupported! {
    ncclCommDeregister ncclCommGetUniqueId ncclCommGrow ncclCommInitRankScalable ncclCommMemStats ncclCommRegister
    ncclCommResume ncclCommRevoke ncclCommShrink ncclCommSuspend ncclCommWindowDeregister ncclCommWindowRegister
    ncclGroupSimulateEnd ncclMemAlloc ncclMemFree ncclPutSignal ncclRedOpCreatePreMulSum ncclRedOpDestroy ncclSignal
    ncclWaitSignal ncclWinGetUserPtr
}
