//! What moves the trained tensors: whole on every rank, or shared out over the ranks.

use std::time::Duration;

use super::checkpoint::folder::Opened;
use super::checkpoint::snapshot::Parts;
use super::optim::AdamW;
use super::sharded::Sharded;
use crate::collective::Collective;
use crate::error::Result;

/// The optimiser of a run.
#[derive(Debug)]
pub enum Optimizer {
    /// Every rank holds all of it and does the same update: adapters, and all weights in a world of one.
    Whole(AdamW),
    /// Every rank holds its part: all weights over several ranks.
    Sharded(Box<Sharded>),
}

impl Optimizer {
    /// Returns how many updates are done.
    pub fn step(&self) -> u64 {
        match self {
            Optimizer::Whole(optimizer) => optimizer.step,
            Optimizer::Sharded(optimizer) => optimizer.step(),
        }
    }

    /// Sets all gradients to zero.
    pub fn zero_grad(&mut self) {
        if let Optimizer::Whole(optimizer) = self {
            optimizer.zero_grad();
        }
    }

    /// Returns the norm of the gradient, the same on every rank.
    ///
    /// # Errors
    /// A member of the gang is gone.
    pub fn gradient_norm(&self, gang: &mut dyn Collective) -> Result<f64> {
        match self {
            Optimizer::Whole(optimizer) => Ok(optimizer.gradient_norm()),
            Optimizer::Sharded(optimizer) => optimizer.gradient_norm(gang),
        }
    }

    /// Does one update with gradients scaled by `factor`.
    ///
    /// # Errors
    /// A member of the gang is gone.
    pub fn update(&mut self, learning_rate: f64, factor: f64, gang: &mut dyn Collective) -> Result<()> {
        match self {
            Optimizer::Whole(optimizer) => {
                optimizer.update(learning_rate, factor);
                Ok(())
            }
            Optimizer::Sharded(optimizer) => optimizer.update(learning_rate, factor, gang),
        }
    }

    /// Returns what a checkpoint keeps, by name: `parameter.NAME`, `first.NAME`, `second.NAME`, `master.NAME`. What is whole is
    /// for the first rank alone; of what is shared out every rank has its slices.
    pub fn parts(&self, is_first: bool) -> Parts {
        match self {
            Optimizer::Whole(_) if !is_first => Parts::default(),
            Optimizer::Whole(optimizer) => {
                let parameters = optimizer.parameters().into_iter().map(|(name, t)| (format!("parameter.{name}"), t));
                Parts { whole: parameters.chain(optimizer.state()).collect(), slices: Vec::new() }
            }
            Optimizer::Sharded(optimizer) => Parts { whole: Vec::new(), slices: optimizer.slices() },
        }
    }

    /// Returns how long the computation has waited for calls of this optimiser's own.
    pub fn waited(&self) -> Duration {
        match self {
            Optimizer::Whole(_) => Duration::ZERO,
            Optimizer::Sharded(optimizer) => optimizer.waited(),
        }
    }

    /// Restores what [`Optimizer::parts`] keeps, whatever number of ranks has written it.
    ///
    /// # Errors
    /// A tensor is missing or of another shape, or a member of the gang is gone.
    pub fn restore(&mut self, found: &Opened, gang: &mut dyn Collective) -> Result<()> {
        match self {
            Optimizer::Whole(optimizer) => optimizer.restore(found.state.step, |name, size| found.tensor(name, size)),
            Optimizer::Sharded(optimizer) => {
                optimizer.restore(found.state.step, |name, range, of| found.slice(name, range, of), gang)
            }
        }
    }

    /// Brings all weights to every rank, where they are shared out, while `work` is done.
    ///
    /// # Errors
    /// A member of the gang is gone, or what `work` reports.
    pub fn with_weights<T>(
        &self,
        gang: &mut dyn Collective,
        work: impl FnOnce(&mut dyn Collective) -> Result<T>,
    ) -> Result<T> {
        let Optimizer::Sharded(optimizer) = self else { return work(gang) };
        optimizer.gather(gang)?;
        let done = work(gang);
        optimizer.scatter();
        done
    }
}
