//! [`PrefixStore`]: a part of a store, whose keys nobody else's can meet.

use super::{Reply, Request, Store};
use crate::error::Result;
use std::sync::Arc;
use std::time::Duration;

/// A store within a store: its key `k` is the key `prefix/k` there. PyTorch's `PrefixStore`.
///
/// ```
/// use phalanx_comm::{MemoryStore, PrefixStore, Store};
/// use std::{sync::Arc, time::Duration};
///
/// let whole = Arc::new(MemoryStore::new(Duration::from_secs(10)));
/// let part = PrefixStore::new("epoch 3", whole.clone());
/// part.set("loss", b"0.5")?;
/// assert_eq!(whole.get("epoch 3/loss")?, b"0.5");
/// # Ok::<(), phalanx_comm::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PrefixStore {
    prefix: Arc<str>,
    whole: Arc<dyn Store>,
}

impl PrefixStore {
    /// The part of `whole` under this prefix.
    pub fn new(prefix: &str, whole: Arc<dyn Store>) -> PrefixStore {
        PrefixStore {
            prefix: prefix.into(),
            whole,
        }
    }
}

impl Store for PrefixStore {
    fn name(&self) -> &str {
        self.whole.name()
    }

    fn rank(&self) -> Option<usize> {
        self.whole.rank()
    }

    fn deadline(&self) -> Duration {
        self.whole.deadline()
    }

    fn ask(&self, requests: &[Request]) -> Result<Vec<Reply>> {
        let prefixed = |request: &Request| request.map_keys(|key| format!("{}/{key}", self.prefix));
        let requests: Vec<Request> = requests.iter().map(prefixed).collect();
        self.whole.ask(&requests)
    }
}
