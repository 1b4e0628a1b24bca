//! What a product does with its sums while they are at hand.

use super::numbers::gelu;
use super::{Result, Status, wrong};

/// `cublasLtEpilogue_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epilogue(pub u32);

const RELU: u32 = 2;
const BIAS: u32 = 4;
const GELU: u32 = 32;
const AUX: u32 = 128;

/// The addresses that a product's description has for its epilogue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Given {
    /// That of the bias.
    pub bias: u64,
    /// That of the auxiliary matrix, which gets the arguments of the function.
    pub aux: u64,
}

/// The most bytes to which an address is taken to be aligned: an algorithm that is asked for without one expects them.
const MOST_ALIGNED: u32 = 256;

impl Given {
    /// Bytes to which the addresses are aligned.
    pub fn aligned(self) -> [u32; 2] {
        [self.bias, self.aux].map(|at| 1 << at.trailing_zeros().min(MOST_ALIGNED.ilog2()))
    }
}

impl Epilogue {
    /// `CUBLASLT_EPILOGUE_DEFAULT`: nothing.
    pub const NONE: Epilogue = Epilogue(1);

    /// Whether the simulator has it.
    pub fn is_simulated(self) -> bool {
        self == Epilogue::NONE
            || [BIAS, RELU, GELU, GELU | AUX]
                .into_iter()
                .any(|parts| self.0 == parts || self.0 == parts | BIAS)
    }

    /// Whether it adds a bias.
    pub fn has_bias(self) -> bool {
        self.0 & BIAS != 0
    }

    /// Whether it stores the arguments of its function.
    pub fn has_aux(self) -> bool {
        self.0 & AUX != 0
    }

    /// What its function makes of a sum.
    pub fn apply(self, v: f64) -> f64 {
        match self.0 {
            // The documentation's `max(x, 0)`, by an instruction that drops NaN.
            parts if parts & RELU != 0 => v.max(0.0),
            parts if parts & GELU != 0 => gelu(v),
            _ => v,
        }
    }

    /// Checks the addresses against those with which an algorithm was asked for.
    ///
    /// # Errors
    /// One is missing, or less aligned.
    pub fn check(self, given: Given, aligned: [u32; 2]) -> Result<()> {
        let parts = [
            ("a bias", self.has_bias(), given.bias),
            ("an auxiliary matrix", self.has_aux(), given.aux),
        ];
        for ((name, wanted, at), aligned) in parts.into_iter().zip(aligned) {
            let what = match (wanted, at) {
                (false, _) => continue,
                (true, 0) => format!("wants {name}, and there is none."),
                (true, at) if at % u64::from(aligned) != 0 => {
                    format!(
                        "has {name} at {at:#x}, and the algorithm was chosen for {aligned} bytes."
                    )
                }
                (true, _) => continue,
            };
            let what = format!("cublasLtMatmul: the epilogue {what}");
            return Err(wrong(what, Status::INVALID_VALUE));
        }
        Ok(())
    }
}
