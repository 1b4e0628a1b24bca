//! The environment of this test tool; nothing else here reads it.
//!
//! | variable | meaning | without it |
//! | --- | --- | --- |
//! | `PHALANX_SIMULATOR_GPUS` | number of GPUs, 0 to 64; with 0 the driver says that there is none | 1 |
//! | `PHALANX_SIMULATOR_MEMORY` | bytes of memory of each GPU | 4 GiB |
//! | `PHALANX_SIMULATOR_BLOCKS` | blocks that each GPU says it runs at once, on one multiprocessor | 108 multiprocessors of 32 |
//! | `PHALANX_SIMULATOR_STRANGERS` | pairs of GPUs without peer access, as `0-1,2-3` | none |
//! | `PHALANX_SIMULATOR_SEED` | number that decides which ready operation runs next | 0 |
//! | `PHALANX_SIMULATOR_REPORT` | file to which each finding is appended as one line | no file |
//! | `PHALANX_SIMULATOR_CACHE` | folder for compiled modules | `phalanx-simulator` in the folder for temporary files |
//! | `PHALANX_SIMULATOR_CHECK` | 1 looks for races in global memory between the threads of a launch, which makes kernels some times slower | 0 |
//! | `PHALANX_SIMULATOR_PATIENCE` | seconds without any progress after which a wait is reported as a deadlock; ten times as many where a collective waits for a rank, which may be late | 60 |
//! | `PHALANX_SIMULATOR_NCCL_MISMATCH` | `report`, or `hang`: ranks whose calls of NCCL do not match, or wait for each other, are no finding, and hang as on a card | `report` |
//! | `CUDA_VISIBLE_DEVICES` | which cards the GPUs of this process are; it serves only to find two ranks on one card | their own numbers |
//! | `NCCL_HOSTID` | a name by which cards of processes on this machine count as those of another machine | none |

use std::env;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::exec::Checks;

/// What the environment asks for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Number of GPUs.
    pub gpus: usize,
    /// Bytes of memory of each GPU.
    pub memory: u64,
    /// Blocks that each GPU says it runs at once.
    pub blocks: Option<i32>,
    /// Pairs of GPUs of which neither can access the other's memory.
    pub strangers: Vec<[usize; 2]>,
    /// The seed of the order in which ready operations run.
    pub seed: u64,
    /// Where findings are written, beside stderr.
    pub report: Option<PathBuf>,
    /// The folder of compiled modules.
    pub cache: PathBuf,
    /// What kernels are checked for.
    pub checks: Checks,
    /// How long a wait may last in which nothing happens.
    pub patience: Duration,
    /// Whether ranks whose calls do not match hang, as on a card, and are no finding.
    pub nccl_hangs: bool,
    /// Which cards the GPUs are.
    visible: Vec<String>,
    /// What machine they count as.
    host: String,
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// A sentence that names the variable whose value is not usable.
    pub fn read() -> Result<Settings, String> {
        let gpus = number("PHALANX_SIMULATOR_GPUS", 1_usize)?;
        if gpus > 64 {
            return Err(format!(
                "PHALANX_SIMULATOR_GPUS is {gpus}; it may be 0 to 64."
            ));
        }
        let cache = env::var_os("PHALANX_SIMULATOR_CACHE").map(PathBuf::from);
        Ok(Settings {
            gpus,
            memory: number("PHALANX_SIMULATOR_MEMORY", 4_u64 << 30)?,
            blocks: blocks("PHALANX_SIMULATOR_BLOCKS")?,
            strangers: strangers("PHALANX_SIMULATOR_STRANGERS")?,
            seed: number("PHALANX_SIMULATOR_SEED", 0_u64)?,
            report: env::var_os("PHALANX_SIMULATOR_REPORT").map(PathBuf::from),
            checks: match number("PHALANX_SIMULATOR_CHECK", 0_u8)? {
                0 => Checks::Usual,
                _ => Checks::Races,
            },
            cache: cache.unwrap_or_else(|| env::temp_dir().join("phalanx-simulator")),
            patience: Duration::from_secs(number("PHALANX_SIMULATOR_PATIENCE", 60_u64)?),
            nccl_hangs: hangs("PHALANX_SIMULATOR_NCCL_MISMATCH")?,
            visible: {
                let visible = env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
                let visible = visible.split(',').filter(|card| !card.is_empty());
                visible.map(str::to_owned).collect()
            },
            host: env::var("NCCL_HOSTID").unwrap_or_default(),
        })
    }
}

impl Settings {
    /// What tells the card of a GPU from all others.
    pub fn card(&self, gpu: usize) -> String {
        let own = gpu.to_string();
        format!("{} {}", self.visible.get(gpu).unwrap_or(&own), self.host)
    }

    /// Whether a GPU can be given access to the memory of another one.
    pub fn can_access(&self, gpu: usize, peer: usize) -> bool {
        let strangers = |pair: &[usize; 2]| *pair == [gpu, peer] || *pair == [peer, gpu];
        gpu != peer && !self.strangers.iter().any(strangers)
    }
}

fn blocks(name: &str) -> Result<Option<i32>, String> {
    let blocks = number(name, 0)?;
    match env::var_os(name) {
        None => Ok(None),
        Some(_) if blocks > 0 => Ok(Some(blocks)),
        Some(_) => Err(format!("{name} is {blocks}; it may be 1 or more.")),
    }
}

fn strangers(name: &str) -> Result<Vec<[usize; 2]>, String> {
    let Some(text) = env::var_os(name) else {
        return Ok(Vec::new());
    };
    let pair = |pair: &str| {
        let (a, b) = pair.split_once('-')?;
        Some([a.parse().ok()?, b.parse().ok()?])
    };
    let pairs = text.to_str().and_then(|text| {
        let pairs = text.split(',').filter(|pair| !pair.is_empty());
        pairs.map(pair).collect()
    });
    pairs.ok_or_else(|| format!("{name} is {text:?}; it may be pairs of GPUs, as 0-1,2-3."))
}

fn hangs(name: &str) -> Result<bool, String> {
    match env::var_os(name) {
        None => Ok(false),
        Some(text) if text == "report" => Ok(false),
        Some(text) if text == "hang" => Ok(true),
        Some(text) => Err(format!("{name} is {text:?}; it may be report or hang.")),
    }
}

fn number<T: FromStr>(name: &str, default: T) -> Result<T, String> {
    let Some(text) = env::var_os(name) else {
        return Ok(default);
    };
    let parsed = text.to_str().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| format!("{name} is {text:?}, which is not a number that it may be."))
}
