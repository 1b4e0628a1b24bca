//! What this process tells the others beside its data: headers, farewells, failures.

use super::*;

impl Core {
    /// This rank's program has ended well; unless it has failed the world itself before.
    pub(in crate::backends::mpi) fn depart(&mut self) {
        let me = self.me();
        self.ended.get_or_insert(Ended::Well);
        self.departed[me] += 1;
        self.tell_all(Kind::Departed);
    }

    /// This process is about to end.
    pub(in crate::backends::mpi) fn bid_farewell(&mut self) {
        let me = self.me();
        self.farewells[me] = true;
        self.tell_all(Kind::Farewell);
    }

    pub(super) fn tell_all(&mut self, kind: Kind) {
        for rank in self.others() {
            self.post(rank, vec![kind as u8]);
        }
    }

    /// Lets go of the parcels that have left.
    pub(super) fn empty_outbox(&mut self) {
        let (wire, mut broken) = (&mut self.wire, None);
        self.outbox
            .retain_mut(|parcel| match wire.has_left(parcel) {
                Ok(left) => !left,
                Err(failure) => {
                    broken = Some(failure);
                    false
                }
            });
        if let Some(failure) = broken {
            self.broken(failure);
        }
    }

    /// Whether all parcels have left.
    pub(in crate::backends::mpi) fn has_sent_all(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Whether MPI still has data of an operation. After a failure it keeps it.
    pub(in crate::backends::mpi) fn is_moving(&self) -> bool {
        !self.moving.is_empty()
    }

    /// Asks the ranks that have not said farewell for a sign.
    pub(in crate::backends::mpi) fn call_the_roll(&mut self) {
        for rank in self
            .others()
            .filter(|&r| !self.farewells[r])
            .collect::<Vec<_>>()
        {
            self.post(rank, vec![Kind::Ping as u8]);
        }
    }

    /// A rank that has not said farewell, nor anything else since `then`.
    pub(in crate::backends::mpi) fn silent_since(&self, then: Instant) -> Option<usize> {
        let mut others = self.others();
        others.find(|&rank| !self.farewells[rank] && self.heard[rank] < then)
    }

    pub(in crate::backends::mpi) fn post(&mut self, rank: usize, bytes: Vec<u8>) {
        let sent = self.wire.send_parcel(bytes.into(), rank);
        let sent = sent.and_then(|mut parcel| {
            let left = self.wire.has_left(&mut parcel)?;
            if !left {
                self.outbox.push(parcel);
            }
            Ok(())
        });
        if let Err(failure) = sent
            && self.fault.is_none()
            && self.accusation.is_none()
        {
            self.broken(failure);
        }
    }
}
