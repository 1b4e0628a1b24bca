//! IDX, the format of the MNIST family: a magic number, the dimensions, then the bytes; plain or inside gzip.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use super::DataError;
use super::gzip::Members;

/// Third byte of the magic number: elements are unsigned bytes.
const UNSIGNED_BYTE: u32 = 0x08;

/// An array of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idx {
    /// Its dimensions, the slowest first.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub data: Vec<u8>,
}

impl Idx {
    /// Reads an array of `rank` dimensions from the file at `path`.
    ///
    /// # Errors
    /// As [`Idx::read`]; or the file cannot be opened.
    pub fn open(path: &Path, rank: u8) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|error| read_error(path, error))?;
        Self::read(BufReader::new(file), path, rank)
    }

    /// Reads an array of `rank` dimensions from `source`; `path` is its name in errors.
    ///
    /// Takes no more memory than the data that is really there, whatever the header claims.
    ///
    /// # Errors
    /// The magic number is another, the data is shorter or longer than the header says, or reading fails.
    pub fn read(mut source: impl BufRead, path: &Path, rank: u8) -> Result<Self, DataError> {
        let start = source.fill_buf().map_err(|error| read_error(path, error))?;
        if start.starts_with(&[0x1f, 0x8b]) {
            let mut members = Members::new(source);
            let idx = Self::parse(&mut members, path, rank);
            // Junk explains data that is cut short, and is none of the data where that is whole.
            match members.rest() {
                Ok(0) => idx,
                Ok(surplus) => Err(DataError::AfterGzip {
                    path: path.into(),
                    surplus,
                }),
                Err(error) => idx.and(Err(read_error(path, error))),
            }
        } else {
            Self::parse(source, path, rank)
        }
    }

    fn parse(mut source: impl Read, path: &Path, rank: u8) -> Result<Self, DataError> {
        let found = word(&mut source, path)?;
        let expected = UNSIGNED_BYTE << 8 | u32::from(rank);
        if found != expected {
            return Err(DataError::Magic {
                path: path.into(),
                rank,
                expected,
                found,
            });
        }
        let shape = (0..rank)
            .map(|_| word(&mut source, path).map(|size| size as usize))
            .collect::<Result<Vec<_>, _>>()?;
        let length = shape
            .iter()
            .try_fold(1usize, |product, &size| product.checked_mul(size));
        let Some(length) = length.filter(|&length| length < isize::MAX as usize) else {
            return Err(DataError::Shape {
                path: path.into(),
                shape,
            });
        };

        let mut data = Vec::new();
        // One byte more than promised tells a file that goes on from one that ends.
        match (&mut source).take(length as u64 + 1).read_to_end(&mut data) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                Err(read_error(path, error))
            }
            _ if data.len() < length => {
                let found = data.len();
                Err(DataError::Truncated {
                    path: path.into(),
                    expected: length,
                    found,
                })
            }
            _ if data.len() > length => Err(DataError::Trailing {
                path: path.into(),
                expected: length,
                // What cannot be read is not counted: that there is more is what is wrong.
                surplus: 1 + io::copy(&mut source, &mut io::sink()).unwrap_or(0),
            }),
            // The array is whole, but the checksum behind it is not.
            Err(error) => Err(read_error(path, error)),
            Ok(_) => Ok(Idx { shape, data }),
        }
    }
}

/// The next four bytes, big-endian.
fn word(source: &mut impl Read, path: &Path) -> Result<u32, DataError> {
    let mut bytes = [0; 4];
    source
        .read_exact(&mut bytes)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => DataError::TruncatedHeader { path: path.into() },
            _ => read_error(path, error),
        })?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_error(path: &Path, error: io::Error) -> DataError {
    DataError::Read {
        path: path.into(),
        error,
    }
}
