//! What this process tells the others beside its data: headers, farewells, failures.

use super::*;

impl Core {
    /// This rank's program has ended.
    pub(in crate::backends::mpi) fn depart(&mut self) {
        let me = self.me();
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

    /// Whether all parcels have left.
    pub(in crate::backends::mpi) fn has_sent_all(&self) -> bool {
        self.outbox.is_empty()
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
