//! [`launch`]: a program as the one rank that this process is, where it was started in torchrun's manner. Rank 0's
//! process serves the store.

use super::session::Session;
use crate::env::{Launcher, Process};
use crate::error::Error;
use crate::group::Group;
use crate::launch::{Ended, LaunchConfig, LaunchError, Program, check_threads, run_process};
use crate::line::report;
use crate::place::{Place, Rendezvous};
use crate::store::{Store, StoreServer, TcpConfig, TcpStore};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often a process looks whether the world has failed while its program runs.
const LOOK: Duration = Duration::from_secs(1);
/// How often rank 0's process looks whether the others have ended.
const ENDS: Duration = Duration::from_millis(5);
/// How long the store is served for those that have not ended in a world that has failed, after the time that they have.
const PRECEDENCE: Duration = Duration::from_millis(500);
/// A process that has said nothing for so long is not waited for: while its program runs, each looks at the store every
/// [`LOOK`].
const SILENCE: Duration = Duration::from_secs(30);
/// How long between two tries to have the store's address.
const RETRY: Duration = Duration::from_millis(100);

/// How many programs this process has run. The processes of a job count alike, so that none takes the store of one
/// program for that of the next, which stands at the same address. What a process has done before is its own, and
/// nobody could pass it on.
static RUNS: AtomicU64 = AtomicU64::new(0);

/// Runs `program` as the rank that this process is by torchrun's variables: see [`run`](crate::run()).
pub(crate) fn launch(config: &LaunchConfig, process: Process, program: Program<'_>) -> Ended {
    check_threads(config.threads_per_rank)?;
    config.check_device(process.size)?;
    let place = Place::detect()?;
    let Rendezvous::Tcp { address, job } = &place.rendezvous else {
        return Err(LaunchError::Unsupported {
            launcher: Launcher::Torchrun,
            size: process.size,
            reason: format!("it is {place}"),
        });
    };
    let run = RUNS.fetch_add(1, Relaxed);
    let job = format!("{job}/{}/{run}", place.epoch);
    let (rank, size) = (place.rank, place.size);
    let server = match rank {
        0 => Some(serve(address, &job, &place, config.start_deadline).map_err(LaunchError::World)?),
        _ => None,
    };
    let store = connect(server.as_ref(), address, &job, rank, config);
    let store = store.map_err(LaunchError::World)?;
    let device = config.host_device(rank, size);
    let engine = super::join(store, rank, size, device, config.deadline);
    let engine = engine.map_err(LaunchError::World)?;
    let session = Arc::clone(&engine.endpoint.session);
    let start = session.meet(size, config.start_deadline);
    let group = Group::world_on(engine, config.card_of(place.local_rank, size));
    let end = match start.and(group) {
        Err(error) => Err(LaunchError::World(error)),
        Ok(group) => run_process(group, config, program, &|ends| {
            watch(ends, &session, config)
        })
        .and_then(|()| match session.untold() {
            // Nobody of this process has heard of it: what the rank returned may be as good as it looks, or not.
            Some(fault) => Err(LaunchError::World(fault)),
            None => Ok(()),
        }),
    };
    if let Some(server) = &server {
        serve_to_the_end(server, &session, config);
    }
    end
}

/// Serves the store at its address. An address that is in use may be free soon: torchrun starts the ranks anew while
/// those of before still end.
fn serve(address: &str, job: &str, place: &Place, limit: Duration) -> Result<StoreServer, Error> {
    let start = Instant::now();
    loop {
        let error = match StoreServer::bind(address, job) {
            Ok(server) => return reachable(server, place),
            Err(error) => error,
        };
        if start.elapsed().saturating_add(RETRY) >= limit {
            return Err(explained(error, start.elapsed()));
        }
        // What no time changes is said at once.
        let Error::StoreUnreachable { reason, .. } = &error else {
            return Err(error);
        };
        if !reason.contains("in use") {
            return Err(explained(error, start.elapsed()));
        }
        sleep(RETRY);
    }
}

/// The ranks of other hosts do not reach an address that every host has for itself.
fn reachable(server: StoreServer, place: &Place) -> Result<StoreServer, Error> {
    let address = server.address();
    if !address.ip().is_loopback() || place.size == place.local_size {
        return Ok(server);
    }
    let (size, local) = (place.size, place.local_size);
    Err(Error::StoreUnreachable {
        store: format!("the store at {address}"),
        rank: Some(place.rank),
        call: "bind".into(),
        waited: Duration::ZERO,
        reason: format!(
            "MASTER_ADDR stands for an address that only this host itself reaches, but {} of the {size} ranks are on \
             others",
            size - local
        ),
    })
}

fn explained(error: Error, waited: Duration) -> Error {
    match error {
        Error::StoreUnreachable {
            store,
            call,
            reason,
            ..
        } => Error::StoreUnreachable {
            store,
            rank: Some(0),
            call,
            waited,
            reason: format!(
                "{reason}; rank 0's process serves it, so MASTER_ADDR is an address of its host, and MASTER_PORT a free \
                 port of it"
            ),
        },
        other => other,
    }
}

fn connect(
    server: Option<&StoreServer>,
    address: &str,
    job: &str,
    rank: usize,
    config: &LaunchConfig,
) -> Result<Arc<dyn Store>, Error> {
    if let Some(server) = server {
        return Ok(Arc::new(server.store(config.deadline).for_rank(rank)));
    }
    let client = TcpConfig::new(job).rank(rank).served_by(0);
    let client = client
        .deadline(config.deadline)
        .start_deadline(config.start_deadline);
    Ok(Arc::new(TcpStore::connect(address, client)?))
}

/// While the program runs: ends the process if it goes on for longer than it may when the world has failed.
fn watch(ends: &Receiver<()>, session: &Session, config: &LaunchConfig) {
    let patience = config.patience();
    loop {
        let failure = session.failure();
        let limit = match (&failure, session.told()) {
            (None, _) => None,
            (Some(_), Some(told)) => Some((told, patience.told)),
            (Some((_, since)), None) => Some((*since, patience.untold)),
        };
        let overdue = limit.filter(|(since, limit)| since.elapsed() > *limit);
        if let (Some((error, _)), Some((_, limit))) = (&failure, overdue) {
            let rank = session.rank;
            report(format_args!(
                "rank {rank} has not ended {limit:?} after the world has failed, so its process is ended: {error}"
            ));
            process::exit(1);
        }
        let wait = match limit {
            None => LOOK,
            Some((since, limit)) => limit.saturating_sub(since.elapsed()).min(LOOK),
        };
        match ends.recv_timeout(wait.max(ENDS)) {
            Err(RecvTimeoutError::Timeout) if failure.is_none() => session.look_for_failure(),
            Err(RecvTimeoutError::Timeout) => {}
            _ => return,
        }
    }
}

/// The others may still need the store when rank 0's program has ended: it is served until they have ended, too, as the
/// ends of their connections tell. Where the world has failed, no longer than they may go on; and not for a host that
/// gives no sign.
fn serve_to_the_end(server: &StoreServer, session: &Session, config: &LaunchConfig) {
    let start = Instant::now();
    let patience = config.patience();
    let limit = patience
        .untold
        .max(patience.told)
        .saturating_add(PRECEDENCE);
    let mut said = false;
    loop {
        let heard = server.heard();
        if heard.is_empty() {
            return;
        }
        let others: Vec<usize> = heard.keys().copied().collect();
        let waited = start.elapsed();
        let are_silent = heard.values().all(|silence| *silence > SILENCE);
        if are_silent || waited > limit && session.failure().is_some() {
            report(format_args!(
                "rank 0's process ends without the ranks {others:?}"
            ));
            return;
        }
        if waited > config.deadline && !said {
            said = true;
            report(format_args!(
                "rank 0 has ended, and its process serves the store until the ranks {others:?} have"
            ));
        }
        sleep(ENDS);
        if session.failure().is_none() {
            session.look_for_failure();
        }
    }
}
