//! Which random numbers a forward pass draws: as they come, or those of a step and a micro-batch.

use crate::nn::Count;
use crate::tape::Tape;
use phalanx_tensor::Rng;
use std::collections::HashMap;

/// The place of a forward pass in the training, from which its random numbers follow.
#[derive(Debug)]
pub(crate) struct Draws {
    step: u64,
    micro_batch: u64,
    /// How often each stream was used here, by its key.
    uses: HashMap<u64, u64>,
}

impl Draws {
    /// The stream of the next use of `stream`.
    fn next(&mut self, stream: &Rng) -> Rng {
        let [key, _] = stream.state();
        let uses = self.uses.entry(key).or_default();
        let at = [self.step, self.micro_batch, *uses];
        *uses += 1;
        at.into_iter()
            .fold(stream.clone(), |rng, at| rng.fold_in(at))
    }
}

impl Tape {
    /// From now on, random numbers follow from the step and the micro-batch, and not from how often a
    /// layer has drawn before: the `k`-th use of a layer since this call draws what the layer's own
    /// stream, `step`, `micro_batch` and `k` determine. So [`nn::Dropout`](crate::nn::Dropout) drops
    /// the same elements whatever the order in which micro-batches run, and on whichever rank. Its count
    /// of uses stays as it is. Call it before each forward pass.
    ///
    /// ```
    /// use phalanx_autograd::Tape;
    /// use phalanx_autograd::nn::{Dropout, Factory, Module};
    /// use phalanx_tensor::{DType, Device, Tensor};
    ///
    /// let layer = Dropout::new(0.5, &mut Factory::new(Device::cpu(0), 7))?;
    /// let tape = Tape::new();
    /// let x = tape.constant(Tensor::ones([64], DType::F32, Device::cpu(0))?);
    /// let drop = |micro_batch| {
    ///     tape.draw_at(100, micro_batch);
    ///     layer.forward(&tape, &x)?.value().to_vec::<f32>().map_err(phalanx_autograd::Error::from)
    /// };
    /// let (first, second) = (drop(0)?, drop(1)?);
    /// assert_ne!(first, second);
    /// assert_eq!((drop(1)?, drop(0)?), (second, first));
    /// # Ok::<(), phalanx_autograd::Error>(())
    /// ```
    pub fn draw_at(&self, step: u64, micro_batch: u64) {
        *self.draws().borrow_mut() = Some(Draws {
            step,
            micro_batch,
            uses: HashMap::new(),
        });
    }

    /// The random numbers of one use of `stream`, which belongs to a module: those of the place that
    /// [`draw_at`](Tape::draw_at) has named; without one, those of the next use that `uses` counts. In
    /// a second run of the same computation, those of the first (as [`seed`](Tape::seed)).
    pub fn draw(&self, stream: &Rng, uses: &Count) -> Rng {
        let seed = self.seed(|| {
            let mut rng = match &mut *self.draws().borrow_mut() {
                Some(draws) => draws.next(stream),
                None => stream.fold_in(uses.advance()),
            };
            rng.next_u64()
        });
        Rng::new(seed)
    }
}
