//! What this process sends to others beside bulk data: parcels, which are calls and the detector's words.

use super::*;
use crate::backends::mpi::word::Letter;

impl Core {
    /// Sends what the detector has to say.
    pub(super) fn send_letters(&mut self) {
        for Letter { to, epoch, word } in self.detector.letters() {
            let bytes = word.write(self.me(), epoch);
            self.post(to, bytes);
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

    pub(super) fn post(&mut self, rank: usize, bytes: Vec<u8>) {
        let sent = self.wire.send_parcel(bytes.into(), rank);
        let sent = sent.and_then(|mut parcel| {
            let left = self.wire.has_left(&mut parcel)?;
            if !left {
                self.outbox.push(parcel);
            }
            Ok(())
        });
        // The first one counts.
        if let Err(failure) = sent {
            self.broken(failure);
        }
    }
}
