//! Fashion-MNIST: finding its files, and turning images and labels into batches.

mod error;
mod gzip;
pub mod idx;

use std::path::{Path, PathBuf};

use phalanx_tensor::{Device, Tensor};

pub use error::DataError;
use idx::Idx;

/// Kinds of clothing in Fashion-MNIST.
pub const CLASSES: usize = 10;
/// Height and width of an image, in pixels.
pub const SIDE: usize = 28;

/// Mean and standard deviation of the training set's pixels, scaled to 0..1.
const MEAN: f32 = 0.2860;
const STD: f32 = 0.3530;

/// The folder with the images that come with the source code.
pub fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

/// Which part of the data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// What the model learns from.
    Train,
    /// What it is judged by.
    Test,
}

impl Split {
    /// Stems of the file names, the full set's first.
    fn stems(self) -> &'static [&'static str] {
        match self {
            Split::Train => &["train", "train-5000"],
            Split::Test => &["t10k", "t10k-1000"],
        }
    }
}

/// Labelled images, as bytes; a batch is normalised when it is made.
#[derive(Clone, Debug)]
pub struct Dataset {
    pixels: Vec<u8>,
    labels: Vec<u8>,
}

impl Dataset {
    /// Reads `split` from the IDX files in `folder`, plain or compressed with gzip.
    ///
    /// # Errors
    /// A file is missing, unreadable, cut short or of another format; images and labels differ in number; a label
    /// is no class. The error names the file.
    pub fn load(folder: &Path, split: Split) -> Result<Self, DataError> {
        let images = find(folder, split, "images-idx3-ubyte")?;
        let labels = find(folder, split, "labels-idx1-ubyte")?;
        Self::from_idx(
            &images,
            Idx::open(&images, 3)?,
            &labels,
            Idx::open(&labels, 1)?,
        )
    }

    fn from_idx(
        images_path: &Path,
        images: Idx,
        labels_path: &Path,
        labels: Idx,
    ) -> Result<Self, DataError> {
        if images.shape[1..] != [SIDE, SIDE] {
            return Err(DataError::ImageSize {
                path: images_path.into(),
                height: images.shape[1],
                width: images.shape[2],
            });
        }
        if images.shape[0] != labels.shape[0] {
            return Err(DataError::CountMismatch {
                images: images_path.into(),
                image_count: images.shape[0],
                labels: labels_path.into(),
                label_count: labels.shape[0],
            });
        }
        if images.shape[0] == 0 {
            return Err(DataError::Empty {
                path: images_path.into(),
            });
        }
        let wrong = labels
            .data
            .iter()
            .position(|&label| usize::from(label) >= CLASSES);
        if let Some(index) = wrong {
            return Err(DataError::Label {
                path: labels_path.into(),
                index,
                label: labels.data[index],
            });
        }
        Ok(Dataset {
            pixels: images.data,
            labels: labels.data,
        })
    }

    /// How many images there are; at least one.
    #[expect(clippy::len_without_is_empty, reason = "a data set is never empty")]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// The images at `indices`, normalised, `[n, 1, 28, 28]` f32, and their classes, `[n]` i64.
    ///
    /// # Errors
    /// The device has no room for the tensors.
    ///
    /// # Panics
    /// An index is not below [`len`](Self::len).
    pub fn batch(
        &self,
        indices: &[usize],
        device: Device,
    ) -> Result<(Tensor, Tensor), phalanx_tensor::Error> {
        const AREA: usize = SIDE * SIDE;
        let mut pixels = Vec::with_capacity(indices.len() * AREA);
        for &index in indices {
            let image = &self.pixels[index * AREA..][..AREA];
            pixels.extend(
                image
                    .iter()
                    .map(|&byte| (f32::from(byte) / 255.0 - MEAN) / STD),
            );
        }
        let classes: Vec<i64> = indices
            .iter()
            .map(|&index| self.labels[index].into())
            .collect();
        let images = Tensor::from_vec(pixels, [indices.len(), 1, SIDE, SIDE], device)?;
        let labels = Tensor::from_vec(classes, [indices.len()], device)?;
        Ok((images, labels))
    }
}

fn find(folder: &Path, split: Split, kind: &str) -> Result<PathBuf, DataError> {
    let names = split.stems().iter().flat_map(|stem| {
        [format!("{stem}-{kind}.gz"), format!("{stem}-{kind}")].map(|name| folder.join(name))
    });
    let mut tried = names.clone();
    names
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| DataError::Missing {
            folder: folder.into(),
            wanted: tried
                .next()
                .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
                .unwrap_or_default(),
        })
}
