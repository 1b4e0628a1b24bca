//! How ranks find each other: each one puts a record under a common name, and a communicator is when all records are
//! there.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use super::meeting::{Key, Meeting};

/// What a rank says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// How many ranks it thinks there are.
    pub ranks: usize,
    /// Its GPU.
    pub gpu: usize,
    /// In a split, the new communicator that it goes to; 0 otherwise.
    pub color: i32,
    /// In a split, what decides its new rank.
    pub key: i32,
}

/// The records under a name.
pub struct Gathering {
    /// The name.
    pub name: String,
    records: Mutex<Vec<Option<Record>>>,
    cliques: Mutex<BTreeMap<i32, Arc<Clique>>>,
}

/// The ranks of a communicator, which all its members share.
pub struct Clique {
    /// What tells it from all others.
    pub name: String,
    /// The GPU of each rank.
    pub gpus: Vec<usize>,
    meetings: Mutex<HashMap<Key, Weak<Meeting>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gathering {
    /// The gathering of this name, for so many ranks if it is new.
    pub fn of(name: &str, ranks: usize) -> Arc<Gathering> {
        static ALL: LazyLock<Mutex<HashMap<String, Arc<Gathering>>>> =
            LazyLock::new(Mutex::default);
        let mut all = lock(&ALL);
        let made = all.entry(name.to_owned()).or_insert_with(|| {
            Arc::new(Gathering {
                name: name.to_owned(),
                records: Mutex::new(vec![None; ranks]),
                cliques: Mutex::default(),
            })
        });
        made.clone()
    }

    /// Puts the record of a rank.
    ///
    /// # Errors
    /// A sentence: the ranks do not agree.
    pub fn put(&self, rank: usize, record: Record) -> Result<(), String> {
        let mut records = lock(&self.records);
        if records.len() != record.ranks {
            return Err(format!(
                "Rank {rank} joins a communicator of {} ranks, and another rank of the same id one of {}.",
                record.ranks,
                records.len()
            ));
        }
        if records[rank].is_some() {
            return Err(format!(
                "Rank {rank} of {} joins a communicator that has its rank {rank} already: an id serves once.",
                record.ranks
            ));
        }
        let twin = records.iter().position(|other| {
            let other = other.as_ref();
            other.is_some_and(|other| other.gpu == record.gpu)
        });
        let gpu = record.gpu;
        records[rank] = Some(record);
        match twin {
            Some(twin) => Err(format!(
                "Ranks {twin} and {rank} of a communicator both use GPU {gpu}: each rank needs a GPU of its own."
            )),
            None => Ok(()),
        }
    }

    /// All records, when all are there.
    pub fn all(&self) -> Option<Vec<Record>> {
        lock(&self.records).iter().cloned().collect()
    }

    /// The ranks whose records are missing.
    pub fn missing(&self) -> Vec<usize> {
        let records = lock(&self.records);
        let missing = records
            .iter()
            .enumerate()
            .filter(|(_, record)| record.is_none());
        missing.map(|(rank, _)| rank).collect()
    }

    /// The new rank and the communicator of the one who has put its record as `rank`, when all records are there.
    pub fn clique(&self, rank: usize) -> Option<(usize, Arc<Clique>)> {
        let records = self.all()?;
        let color = records[rank].color;
        let mut members: Vec<_> = records
            .iter()
            .enumerate()
            .filter(|(_, record)| record.color == color)
            .collect();
        members.sort_by_key(|(rank, record)| (record.key, *rank));
        let new = members.iter().position(|(old, _)| *old == rank)?;
        let mut cliques = lock(&self.cliques);
        let clique = cliques.entry(color).or_insert_with(|| {
            Arc::new(Clique {
                name: format!("{}.{color}", self.name),
                gpus: members.iter().map(|(_, record)| record.gpu).collect(),
                meetings: Mutex::default(),
            })
        });
        Some((new, clique.clone()))
    }
}

impl Clique {
    /// How many ranks there are.
    pub fn ranks(&self) -> usize {
        self.gpus.len()
    }

    /// The meeting of this key.
    pub fn meeting(&self, key: Key) -> Arc<Meeting> {
        let mut meetings = lock(&self.meetings);
        if let Some(meeting) = meetings.get(&key).and_then(Weak::upgrade) {
            return meeting;
        }
        if meetings.len() >= 256 {
            meetings.retain(|_, meeting| meeting.strong_count() > 0);
        }
        let meeting = Arc::new(Meeting::new(self.ranks(), key));
        meetings.insert(key, Arc::downgrade(&meeting));
        meeting
    }
}
