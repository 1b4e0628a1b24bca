//! One line on stderr where the kernels were built without optimisation: nobody should take that for
//! their speed.

use std::io::{self, Write};
use std::sync::Once;

/// Known when the crate is built: elsewhere no code is left of this.
const UNOPTIMISED: bool = matches!(env!("PHALANX_OPT_LEVEL").as_bytes(), b"0");

const REMARK: &str = "phalanx: the kernels were built without optimisation and are some 50 to 110 times slower; \
     put this into your Cargo.toml: [profile.dev.package.\"*\"] opt-level = 3";

/// Writes the line, once in a process. What cannot be written is left out.
#[inline]
pub(crate) fn remark_once() {
    if UNOPTIMISED {
        static REMARKED: Once = Once::new();
        REMARKED.call_once(|| _ = writeln!(io::stderr(), "{REMARK}"));
    }
}
