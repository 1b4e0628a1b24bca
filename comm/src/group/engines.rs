//! [`Engines`]: who carries a group's calls out, by the kind of device that their tensors are on.

use crate::backends::Backend;
use crate::backends::nccl::{self, Card, UnderWays};
use crate::error::Result;
use crate::membership::Membership;
use phalanx_tensor::Device;
use std::sync::Arc;

/// The engines of a group: one for each kind of device. (PyTorch: `cpu:gloo,cuda:nccl`.)
#[derive(Clone)]
pub(crate) struct Engines {
    /// For tensors in the host's memory, and for what ranks say to each other beside their tensors: barriers,
    /// splits, sizes. One that carries small talk alone refuses the rest.
    pub(crate) host: Arc<dyn Backend>,
    /// For tensors on cards: one for each card of this rank, of which the first is where results live.
    pub(crate) cards: Vec<Arc<Card>>,
    /// Of all groups of this rank.
    pub(crate) under_way: UnderWays,
}

impl Engines {
    /// The engine for tensors on this device. A rank alone needs none for its cards: it meets nobody.
    pub(super) fn of(&self, device: Device) -> Option<&dyn Backend> {
        let mut cards = self.cards();
        match device.is_cpu() {
            true => Some(&*self.host),
            false if self.host.membership().size() == 1 => Some(self.main()),
            false => cards.find(|engine| engine.membership().device == device),
        }
    }

    /// The engine for tensors where the group's results live.
    pub(super) fn main(&self) -> &dyn Backend {
        self.cards().next().unwrap_or(&*self.host)
    }

    fn cards(&self) -> impl Iterator<Item = &dyn Backend> {
        self.cards.iter().map(|card| -> &dyn Backend { &**card })
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &dyn Backend> {
        [&*self.host].into_iter().chain(self.cards())
    }

    /// The cards of this rank.
    pub(super) fn devices(&self) -> Vec<Device> {
        let cards = self.cards();
        cards.map(|engine| engine.membership().device).collect()
    }

    /// Those of a group that was split off, over these cards of this rank.
    pub(super) fn split_off(&self, new: &Membership, cards: &[Device]) -> Result<Engines> {
        let host = self.host.split_off(new.clone())?;
        let under_way = self.under_way.clone();
        let cards = match cards {
            [] => Vec::new(),
            cards => nccl::beside(&host, cards, &under_way)?,
        };
        Ok(Engines {
            host,
            cards,
            under_way,
        })
    }
}
