//! PTX to machine code: the text is parsed, translated to C, and compiled by g++ to a shared object that is kept in a
//! cache on disk.
//!
//! **An instruction that is not understood to its last modifier is an error that names it**, never a wrong answer.

pub mod ast;
mod compile;
mod declare;
pub mod emit;
mod lex;
mod parse;

pub use compile::{Object, compile};
pub use parse::parse;

/// Why a module cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(
    missing_docs,
    reason = "the sentence of each variant says what its fields are"
)]
pub enum LoadError {
    /// The text is not PTX as it is known here.
    #[error("line {line} of the PTX text cannot be read: {what}")]
    Syntax { line: u32, what: String },
    /// An instruction, or a form of it, that the simulator does not execute.
    #[error(
        "the simulated device does not know the instruction '{instruction}' (function '{function}', line {line} of the source, line {ptx} of the PTX text)"
    )]
    Instruction {
        instruction: String,
        function: String,
        line: u32,
        ptx: u32,
    },
    /// An instruction whose operands make no sense.
    #[error(
        "the instruction '{instruction}' cannot be translated: {what} (function '{function}', line {line} of the source, line {ptx} of the PTX text)"
    )]
    Operand {
        instruction: String,
        function: String,
        what: String,
        line: u32,
        ptx: u32,
    },
    /// There is no compiler.
    #[error("the simulated device needs the compiler g++, which cannot be started: {0}")]
    NoCompiler(std::io::Error),
    /// The processor lacks what the generated code uses.
    #[error("the simulated device needs a processor with AVX2, FMA and F16C, which this one lacks")]
    Processor,
    /// The compiler refused the generated code, which is a fault of the simulator.
    #[error(
        "g++ refused the code that the simulator made of a module, which is kept at {text}; it says: {said}"
    )]
    Refused {
        text: std::path::PathBuf,
        said: String,
    },
    /// The cache cannot be read or written.
    #[error("the cache of translated kernels at {path} cannot be used: {error}")]
    Cache {
        path: std::path::PathBuf,
        error: std::io::Error,
    },
    /// The shared object cannot be loaded.
    #[error("a translated module cannot be loaded: {0}")]
    Dynamic(String),
}
