//! How ranks find each other: each one puts a record under a common name, and a communicator is when all records are
//! there. Ranks of other processes put theirs as files.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use super::meeting::{Key, Meeting};
use super::shared::{self, Folder, JOIN};

/// What a rank says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its process.
    pub process: u32,
    /// How many ranks it thinks there are.
    pub ranks: usize,
    /// Its GPU, by the number that its process has for it.
    pub gpu: usize,
    /// In a split, the new communicator that it goes to; 0 otherwise.
    pub color: i32,
    /// In a split, what decides its new rank.
    pub key: i32,
    /// What tells its card from all others.
    pub card: String,
}

impl Record {
    fn text(&self) -> String {
        let Record {
            process,
            ranks,
            gpu,
            color,
            key,
            card,
        } = self;
        format!("{process} {ranks} {gpu} {color} {key} {card}")
    }

    fn of(bytes: &[u8]) -> Option<Record> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut parts = text.splitn(6, ' ');
        Some(Record {
            process: parts.next()?.parse().ok()?,
            ranks: parts.next()?.parse().ok()?,
            gpu: parts.next()?.parse().ok()?,
            color: parts.next()?.parse().ok()?,
            key: parts.next()?.parse().ok()?,
            card: parts.next()?.to_owned(),
        })
    }
}

/// The records under a name.
pub struct Gathering {
    /// The name.
    pub name: String,
    /// Where ranks of other processes put theirs, if there may be such.
    folder: Option<Folder>,
    records: Mutex<Vec<Option<Record>>>,
    /// That the ranks do not agree, once it was seen.
    wrong: OnceLock<String>,
    cliques: Mutex<BTreeMap<i32, Arc<Clique>>>,
}

/// The ranks of a communicator, which all its members share.
pub struct Clique {
    /// What tells it from all others.
    pub name: String,
    /// The process of each rank.
    processes: Vec<u32>,
    meetings: Mutex<HashMap<Key, Weak<Meeting>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a record in.
fn add(records: &mut [Option<Record>], rank: usize, record: Record) -> Result<(), String> {
    let ranks = record.ranks;
    if records.len() != ranks {
        return Err(format!(
            "Rank {rank} joins a communicator of {ranks} ranks, and another rank of the same id one of {}.",
            records.len()
        ));
    }
    let others = records
        .iter()
        .enumerate()
        .filter(|(other, _)| *other != rank);
    let mut known = others.filter_map(|(other, record)| Some((other, record.as_ref()?)));
    let twin = known.find(|(_, other)| other.card == record.card);
    let sentence = twin.map(|(twin, _)| {
        format!(
            "Ranks {twin} and {rank} of a communicator both use GPU {}: each rank needs a GPU of its own.",
            record.gpu
        )
    });
    records[rank] = Some(record);
    sentence.map_or(Ok(()), Err)
}

impl Gathering {
    /// The gathering of this name, for so many ranks if it is new. Some of them may be in other processes, or none.
    pub fn of(name: &str, ranks: usize, is_shared: bool) -> Arc<Gathering> {
        static ALL: LazyLock<Mutex<HashMap<String, Arc<Gathering>>>> =
            LazyLock::new(Mutex::default);
        let mut all = lock(&ALL);
        let made = all.entry(name.to_owned()).or_insert_with(|| {
            Arc::new(Gathering {
                name: name.to_owned(),
                folder: is_shared.then(|| Folder::of(name)),
                records: Mutex::new(vec![None; ranks]),
                wrong: OnceLock::new(),
                cliques: Mutex::default(),
            })
        });
        made.clone()
    }

    fn file(&self, rank: usize) -> String {
        format!("{JOIN}{}-{rank}", self.name)
    }

    /// Puts the record of a rank of this process.
    ///
    /// # Errors
    /// A sentence: the ranks do not agree.
    pub fn put(&self, rank: usize, record: Record) -> Result<(), String> {
        let mut records = lock(&self.records);
        let taken = format!(
            "Rank {rank} of {} joins a communicator that has its rank {rank} already: an id serves once.",
            record.ranks
        );
        if records.get(rank).is_some_and(Option::is_some) {
            return Err(taken);
        }
        if let Some(folder) = &self.folder {
            let joined = folder.join(&self.file(rank), record.text().as_bytes());
            joined.map_err(|error| match shared::is_taken(&error) {
                true => taken,
                false => format!("Rank {rank} cannot say in shared memory that it joins: {error}."),
            })?;
        }
        self.add(&mut records, rank, record)
    }

    fn add(
        &self,
        records: &mut [Option<Record>],
        rank: usize,
        record: Record,
    ) -> Result<(), String> {
        let added = add(records, rank, record);
        added.inspect_err(|sentence| drop(self.wrong.set(sentence.clone())))
    }

    /// Looks for the records of other processes. Whether all records are there.
    ///
    /// # Errors
    /// A sentence: the ranks do not agree.
    pub fn look(&self) -> Result<bool, String> {
        let mut records = lock(&self.records);
        if let Some(sentence) = self.wrong.get() {
            return Err(sentence.clone());
        }
        let Some(folder) = &self.folder else {
            return Ok(records.iter().all(Option::is_some));
        };
        let mut found = false;
        for rank in 0..records.len() {
            if records[rank].is_none()
                && let Some(record) = folder
                    .read(&self.file(rank))
                    .as_deref()
                    .and_then(Record::of)
            {
                found = true;
                self.add(&mut records, rank, record)?;
            }
        }
        let is_complete = records.iter().all(Option::is_some);
        let own = std::process::id();
        if is_complete && !found && !self.name.contains('/') {
            let mut known = records.iter().flatten();
            if known.all(|record| record.process == own) {
                // All ranks are threads of this process: they need no files.
                folder.remove();
            }
        }
        Ok(is_complete)
    }

    /// The ranks whose records are missing.
    pub fn missing(&self) -> Vec<usize> {
        let records = lock(&self.records);
        let missing = records.iter().enumerate();
        let missing = missing.filter(|(_, record)| record.is_none());
        missing.map(|(rank, _)| rank).collect()
    }

    /// The new rank and the communicator of the one who has put its record as `rank`, when all records are there.
    pub fn clique(&self, rank: usize) -> Option<(usize, Arc<Clique>)> {
        if !self.look().ok()? {
            return None;
        }
        let records: Vec<Record> = lock(&self.records).iter().flatten().cloned().collect();
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
                processes: members.iter().map(|(_, record)| record.process).collect(),
                meetings: Mutex::default(),
            })
        });
        Some((new, clique.clone()))
    }

    /// Says that a rank of this process has left.
    pub fn leave(&self, rank: usize) {
        if let Some(folder) = &self.folder {
            folder.leave(&self.file(rank));
        }
    }
}

impl Clique {
    /// How many ranks there are.
    pub fn ranks(&self) -> usize {
        self.processes.len()
    }

    /// Whether there are ranks in other processes.
    pub fn is_shared(&self) -> bool {
        let own = std::process::id();
        self.processes.iter().any(|process| *process != own)
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
        let meeting = Arc::new(Meeting::new(&self.name, &self.processes, key));
        meetings.insert(key, Arc::downgrade(&meeting));
        meeting
    }
}
