//! What can be wrong with a data set's files.

use std::path::PathBuf;
use std::{fmt, io};

use thiserror::Error;

/// Why a data set could not be read. Each names the file.
#[derive(Error)]
#[non_exhaustive]
pub enum DataError {
    /// The folder holds no such file.
    #[error("there is no {wanted} in {}; --data names the folder that holds the IDX files", folder.display())]
    Missing {
        /// Where it was looked for.
        folder: PathBuf,
        /// The file name of the full data set.
        wanted: String,
    },
    /// The operating system, or gzip, could not read the file.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The file does not begin as an IDX file of bytes does.
    #[error("{} is no IDX file of bytes with {rank} dimension(s): it begins with {found:#010x}, not {expected:#010x}", path.display())]
    Magic {
        /// The file.
        path: PathBuf,
        /// Dimensions that it should have.
        rank: u8,
        /// The first four bytes of such a file.
        expected: u32,
        /// The first four bytes of this one.
        found: u32,
    },
    /// The header promises more elements than memory can address.
    #[error("{} claims an impossible shape, {shape:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The dimensions that its header gives.
        shape: Vec<usize>,
    },
    /// The file ends before its header or its data do.
    #[error("{} is cut short: its header promises {expected} bytes of data and {found} are there", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes of data that the header promises.
        expected: usize,
        /// Bytes of data found.
        found: usize,
    },
    /// The file ends inside its header.
    #[error("{} is cut short: it ends inside its header", path.display())]
    TruncatedHeader {
        /// The file.
        path: PathBuf,
    },
    /// More data follows than the header promises.
    #[error("{} goes on for {surplus} bytes after the {expected} bytes of data that its header promises", path.display())]
    Trailing {
        /// The file.
        path: PathBuf,
        /// Bytes of data that the header promises.
        expected: usize,
        /// Bytes that follow.
        surplus: u64,
    },
    /// Something follows the gzip data that is no gzip.
    #[error("{} goes on after its compressed data: the last {surplus} bytes are no gzip", path.display())]
    AfterGzip {
        /// The file.
        path: PathBuf,
        /// Bytes that follow.
        surplus: u64,
    },
    /// The images are not 28×28.
    #[error("{} holds images of {height}×{width} pixels; they should be 28×28", path.display())]
    ImageSize {
        /// The file.
        path: PathBuf,
        /// Rows of an image.
        height: usize,
        /// Columns of an image.
        width: usize,
    },
    /// Images and labels differ in number.
    #[error("{} holds {image_count} images, but {} holds {label_count} labels", images.display(), labels.display())]
    CountMismatch {
        /// The file of the images.
        images: PathBuf,
        /// Images in it.
        image_count: usize,
        /// The file of the labels.
        labels: PathBuf,
        /// Labels in it.
        label_count: usize,
    },
    /// There is not one image.
    #[error("{} holds no images", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A label is not one of the ten classes.
    #[error("{} gives image {index} the label {label}; labels are 0 to 9", path.display())]
    Label {
        /// The file of the labels.
        path: PathBuf,
        /// Which image.
        index: usize,
        /// Its label.
        label: u8,
    },
}

/// A `main` that returns an error prints its `Debug`: a derived one would hide the sentence.
impl fmt::Debug for DataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
