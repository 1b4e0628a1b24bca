//! The reader of the data set: real files, and every way in which files break.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use phalanx_examples::data::idx::Idx;
use phalanx_examples::data::{self, DataError, Dataset, Split};
use phalanx_tensor::Device;
use proptest::prelude::*;

const NAME: &str = "some-file";

fn read(bytes: &[u8], rank: u8) -> Result<Idx, DataError> {
    Idx::read(bytes, Path::new(NAME), rank)
}

/// An IDX file of unsigned bytes.
fn idx(shape: &[usize], data: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, u8::try_from(shape.len()).unwrap()];
    file.extend(
        shape
            .iter()
            .flat_map(|&size| u32::try_from(size).unwrap().to_be_bytes()),
    );
    file.extend(data);
    file
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Small arrays of one to three dimensions.
fn arrays() -> impl Strategy<Value = Idx> {
    prop::collection::vec(0usize..6, 1..=3).prop_flat_map(|shape| {
        let length = shape.iter().product::<usize>();
        prop::collection::vec(any::<u8>(), length).prop_map(move |data| Idx {
            shape: shape.clone(),
            data,
        })
    })
}

proptest! {
    #[test]
    fn what_was_written_is_read(array in arrays()) {
        let rank = array.shape.len() as u8;
        let file = idx(&array.shape, &array.data);
        prop_assert_eq!(&read(&file, rank).unwrap(), &array);
        prop_assert_eq!(&read(&gzip(&file), rank).unwrap(), &array);
    }

    #[test]
    fn every_cut_is_noticed(array in arrays(), at in any::<prop::sample::Index>(), packed: bool) {
        let rank = array.shape.len() as u8;
        let whole = idx(&array.shape, &array.data);
        let whole = if packed { gzip(&whole) } else { whole };
        let cut = &whole[..at.index(whole.len())];
        let error = read(cut, rank).unwrap_err();
        let expected = matches!(
            error,
            DataError::Truncated { .. } | DataError::TruncatedHeader { .. } | DataError::Read { .. }
        );
        prop_assert!(expected, "{error:?}");
        prop_assert!(error.to_string().contains(NAME), "{error}");
    }

    #[test]
    fn damage_never_panics_nor_invents_data(
        array in arrays(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        packed: bool,
    ) {
        let whole = idx(&array.shape, &array.data);
        let mut file = if packed { gzip(&whole) } else { whole };
        for (at, byte) in damage {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Ok(read) = read(&file, array.shape.len() as u8) {
            prop_assert_eq!(read.data.len(), read.shape.iter().product::<usize>());
        }
    }

    #[test]
    fn noise_is_an_error_or_an_array(bytes in prop::collection::vec(any::<u8>(), 0..200), rank in 1u8..4) {
        if let Ok(read) = read(&bytes, rank) {
            prop_assert_eq!(read.data.len(), read.shape.iter().product::<usize>());
        }
    }
}

#[test]
fn a_wrong_magic_number_is_named() {
    let labels = idx(&[2], &[1, 2]);
    let error = read(&labels, 3).unwrap_err();
    assert!(
        matches!(
            error,
            DataError::Magic {
                expected: 0x803,
                found: 0x801,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn a_file_that_goes_on_is_an_error() {
    let error = read(&idx(&[2], &[1, 2, 3]), 1).unwrap_err();
    assert!(
        matches!(error, DataError::Trailing { expected: 2, .. }),
        "{error:?}"
    );
}

#[test]
fn impossible_headers_take_no_memory() {
    let most = u32::MAX as usize;
    let error = read(&idx(&[most, most, most], &[0; 9]), 3).unwrap_err();
    assert!(matches!(error, DataError::Shape { .. }), "{error:?}");
    // 4 GiB promised, 9 bytes there.
    let error = read(&idx(&[most], &[0; 9]), 1).unwrap_err();
    assert!(
        matches!(error, DataError::Truncated { found: 9, .. }),
        "{error:?}"
    );
}

#[test]
fn a_damaged_checksum_is_noticed() {
    let mut file = gzip(&idx(&[2], &[1, 2]));
    let checksum = file.len() - 8;
    file[checksum] ^= 1;
    let error = read(&file, 1).unwrap_err();
    assert!(matches!(error, DataError::Read { .. }), "{error:?}");
}

#[test]
fn a_gzip_file_of_several_members_is_read_to_its_end() {
    let data: Vec<u8> = (0..200).collect();
    let file = idx(&[200], &data);
    for cuts in [vec![1], vec![8], vec![3, 3, 100], vec![file.len()]] {
        let (mut packed, mut start) = (Vec::new(), 0);
        for end in cuts.into_iter().chain([file.len()]) {
            packed.extend(gzip(&file[start..end]));
            start = end;
        }
        assert_eq!(read(&packed, 1).unwrap().data, data);
        // Cut inside the last member, it is no whole file.
        let error = read(&packed[..packed.len() - 3], 1).unwrap_err();
        assert!(error.to_string().contains(NAME), "{error}");
    }
    // More data in a further member than the header promises.
    let more = [gzip(&file), gzip(&[7; 30])].concat();
    let error = read(&more, 1).unwrap_err();
    assert!(
        matches!(error, DataError::Trailing { surplus: 30, .. }),
        "{error}"
    );
}

#[test]
fn junk_behind_the_data_is_an_error_that_counts_it() {
    let file = idx(&[2], &[1, 2]);
    for junk in [&b"junk"[..], &[0; 512], b"x"] {
        let packed = [&gzip(&file), junk].concat();
        let error = read(&packed, 1).unwrap_err();
        let count = junk.len() as u64;
        assert!(
            matches!(error, DataError::AfterGzip { surplus, .. } if surplus == count),
            "{error}"
        );
        let text = error.to_string();
        assert!(
            text.contains(NAME) && text.contains(&format!("{count} bytes")),
            "{text}"
        );

        let plain = [&file, junk].concat();
        let error = read(&plain, 1).unwrap_err();
        assert!(
            matches!(error, DataError::Trailing { surplus, .. } if surplus == count),
            "{error}"
        );
        assert!(error.to_string().contains(NAME), "{error}");
    }
    // What looks like a member and is none.
    let error = read(&[gzip(&file), vec![0x1f, 0x8b, 9]].concat(), 1).unwrap_err();
    assert!(error.to_string().contains(NAME), "{error}");
}

#[test]
fn a_sentence_says_a_cause_once() {
    let error = read(&[gzip(&idx(&[2], &[1, 2])), vec![0x1f, 9]].concat(), 1).unwrap_err();
    assert!(matches!(error, DataError::Read { .. }), "{error}");
    // Programs print the whole chain of causes.
    let cause = error.to_string();
    let cause = cause.rsplit(": ").next().unwrap();
    let printed = format!("{:#}", anyhow::Error::from(error));
    assert_eq!(printed.matches(cause).count(), 1, "{printed}");
    let error = phalanx_autograd::State::load("/no/such/file", Device::cpu(0)).unwrap_err();
    let printed = format!("{:#}", anyhow::Error::from(error));
    assert_eq!(printed.matches("No such file").count(), 1, "{printed}");
}

#[test]
fn the_bundled_images_are_whole() {
    let train = Dataset::load(&data::bundled(), Split::Train).unwrap();
    let test = Dataset::load(&data::bundled(), Split::Test).unwrap();
    assert_eq!((train.len(), test.len()), (5_000, 1_000));
    let first: Vec<usize> = (0..10).collect();
    let (images, labels) = train.batch(&first, Device::cpu(0)).unwrap();
    assert_eq!(images.dims(), [10, 1, 28, 28]);
    assert_eq!(
        labels.to_vec::<i64>().unwrap(),
        [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    );
    let (_, labels) = test.batch(&first, Device::cpu(0)).unwrap();
    assert_eq!(
        labels.to_vec::<i64>().unwrap(),
        [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    );

    // Normalised: the training set has mean 0 and standard deviation 1.
    let all: Vec<usize> = (0..train.len()).collect();
    let (images, _) = train.batch(&all, Device::cpu(0)).unwrap();
    let pixels = images.to_vec::<f32>().unwrap();
    let mean = pixels.iter().map(|&x| f64::from(x)).sum::<f64>() / pixels.len() as f64;
    let square = pixels.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / pixels.len() as f64;
    assert!(mean.abs() < 0.01, "mean {mean}");
    assert!((square - 1.0).abs() < 0.01, "variance {square}");
}

/// A folder with these training images and labels.
fn folder(name: &str, images: &[u8], labels: &[u8]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("train-images-idx3-ubyte"), images).unwrap();
    fs::write(folder.join("train-labels-idx1-ubyte"), labels).unwrap();
    folder
}

#[test]
fn images_and_labels_must_belong_together() {
    let images = |count, side| idx(&[count, side, side], &vec![7; count * side * side]);

    let good = folder("good", &images(2, 28), &gzip(&idx(&[2], &[0, 9])));
    assert_eq!(Dataset::load(&good, Split::Train).unwrap().len(), 2);
    let error = Dataset::load(&good, Split::Test).unwrap_err();
    assert!(matches!(error, DataError::Missing { .. }), "{error:?}");
    assert!(
        error.to_string().contains("t10k-images-idx3-ubyte.gz"),
        "{error}"
    );

    let load = |name, images: &[u8], labels: &[u8]| {
        Dataset::load(&folder(name, images, labels), Split::Train).unwrap_err()
    };
    let error = load("count", &images(2, 28), &idx(&[3], &[0, 1, 2]));
    assert!(
        matches!(
            error,
            DataError::CountMismatch {
                image_count: 2,
                label_count: 3,
                ..
            }
        ),
        "{error:?}"
    );
    let error = load("size", &images(1, 32), &idx(&[1], &[0]));
    assert!(
        matches!(
            error,
            DataError::ImageSize {
                height: 32,
                width: 32,
                ..
            }
        ),
        "{error:?}"
    );
    let error = load("label", &images(2, 28), &idx(&[2], &[0, 10]));
    assert!(
        matches!(
            error,
            DataError::Label {
                index: 1,
                label: 10,
                ..
            }
        ),
        "{error:?}"
    );
    let error = load("empty", &images(0, 28), &idx(&[0], &[]));
    assert!(matches!(error, DataError::Empty { .. }), "{error:?}");
}
