//! Gzip files of one member or several, one after the other, as `cat a.gz b.gz` and `pigz` make them.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

/// The first byte of every member.
const FIRST: u8 = 0x1f;

/// What all members of a gzip file hold. Ends where no further member begins.
pub(super) struct Members<R> {
    at: At<R>,
}

enum At<R> {
    /// Inside a member.
    Inside(GzDecoder<R>),
    /// Between members, or after the last.
    Between(R),
    /// While the one becomes the other.
    Nowhere,
}

impl<R: BufRead> Members<R> {
    pub(super) fn new(source: R) -> Self {
        Members {
            at: At::Between(source),
        }
    }

    /// How many bytes follow the last member, where the data has been read to its end; 0 where it has
    /// not.
    pub(super) fn rest(self) -> io::Result<u64> {
        match self.at {
            At::Between(mut source) => io::copy(&mut source, &mut io::sink()),
            At::Inside(_) | At::Nowhere => Ok(0),
        }
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.at, At::Nowhere) {
                At::Inside(mut decoder) => {
                    let read = decoder.read(out);
                    self.at = match read {
                        Ok(0) => At::Between(decoder.into_inner()),
                        _ => At::Inside(decoder),
                    };
                    if !matches!(read, Ok(0)) {
                        return read;
                    }
                }
                At::Between(mut source) => {
                    let goes_on = source.fill_buf().map(|rest| rest.first() == Some(&FIRST));
                    match goes_on {
                        Ok(true) => self.at = At::Inside(GzDecoder::new(source)),
                        end => {
                            self.at = At::Between(source);
                            return end.map(|_| 0);
                        }
                    }
                }
                At::Nowhere => return Ok(0),
            }
        }
    }
}
