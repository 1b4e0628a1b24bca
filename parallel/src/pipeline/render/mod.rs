//! Pictures of a plan in time: an SVG to look at, and a trace for Perfetto or `chrome://tracing`.

mod chrome_trace;
mod svg;

pub use chrome_trace::chrome_trace;
pub use svg::{stacked, svg};
