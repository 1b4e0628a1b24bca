//! Folders with the first images of the data that comes with the source, for what need not be learnt well.

use std::fs;
use std::path::Path;

use phalanx_examples::data;
use phalanx_examples::data::idx::Idx;

/// Writes the first `train` and `test` images to a folder of this name, and returns its path.
pub fn few(name: &str, train: usize, test: usize) -> String {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).unwrap();
    for (from, to, count) in [("train-5000", "train", train), ("t10k-1000", "t10k", test)] {
        for (kind, rank) in [("images-idx3-ubyte", 3), ("labels-idx1-ubyte", 1)] {
            let all = Idx::open(&data::bundled().join(format!("{from}-{kind}.gz")), rank).unwrap();
            let mut file = vec![0, 0, 8, rank];
            file.extend(u32::try_from(count).unwrap().to_be_bytes());
            file.extend(
                all.shape[1..]
                    .iter()
                    .flat_map(|&n| u32::try_from(n).unwrap().to_be_bytes()),
            );
            file.extend(&all.data[..count * all.shape[1..].iter().product::<usize>()]);
            fs::write(folder.join(format!("{to}-{kind}")), file).unwrap();
        }
    }
    folder.to_str().unwrap().to_owned()
}
