//! What the ranks of a gang do together, each call with a deadline; a failure ends the attempt on every rank.
//!
//! Calls work in place on a buffer of the same length on every rank. A buffer is cut into as many shards as there are
//! ranks ([`shard`]); [`Collective::reduce_scatter`] leaves a rank its own shard, [`Collective::all_gather`] starts from
//! it. Results are the same bits every time, and, where all ranks get them, on every rank. A world of one is a real
//! implementation that has nothing to do.

#[cfg(test)]
mod conformance;
pub mod nccl;
pub mod numbers;
pub mod ring;
pub mod transport;

use std::ops::Range;

pub use numbers::{Numbers, Op};

use crate::error::Result;

/// The members of one attempt at a training task, seen from one of them.
///
/// Every call is made by all ranks in the same order, with buffers of the same length and type. Its errors: a member is
/// gone or too late; after one, every later call fails.
pub trait Collective: Send {
    /// This member's number, from 0.
    fn rank(&self) -> usize;

    /// How many members there are.
    fn world_size(&self) -> usize;

    /// Returns at once: an error where it is known that a member is gone. For long computations between two calls.
    ///
    /// # Errors
    /// The calls were ended by another thread.
    fn check(&self) -> Result<()>;

    /// Leaves in this rank's shard what all ranks' numbers there come to; the rest of the buffer is undefined.
    ///
    /// # Errors
    /// See the trait.
    fn reduce_scatter(&mut self, numbers: Numbers<'_>, op: Op) -> Result<()>;

    /// Replaces every rank's shard of the buffer by that rank's own.
    ///
    /// # Errors
    /// See the trait.
    fn all_gather(&mut self, numbers: Numbers<'_>) -> Result<()>;

    /// Replaces every number by what it and those of all other ranks come to.
    ///
    /// # Errors
    /// See the trait.
    fn all_reduce(&mut self, numbers: Numbers<'_>, op: Op) -> Result<()>;

    /// Replaces the numbers by those of the rank `root`.
    ///
    /// # Errors
    /// See the trait.
    fn broadcast(&mut self, numbers: Numbers<'_>, root: usize) -> Result<()>;

    /// Returns when all ranks have called it.
    ///
    /// # Errors
    /// See the trait.
    fn barrier(&mut self) -> Result<()>;

    /// Returns every rank's number, in rank order.
    ///
    /// # Errors
    /// See the trait.
    fn all_gather_number(&mut self, number: f64) -> Result<Vec<f64>> {
        let mut all = vec![0.0; self.world_size()];
        all[self.rank()] = number;
        self.all_gather(all.as_mut_slice().into())?;
        Ok(all)
    }

    /// Returns rank 0's number on every rank; unlike a broadcast, nobody goes on before all have come.
    ///
    /// # Errors
    /// See the trait.
    fn first_of(&mut self, number: f64) -> Result<f64> {
        Ok(self.all_gather_number(number)?[0])
    }
}

/// Returns where the shard of a rank lies in a buffer of `length` numbers: lengths differ by one at most.
pub fn shard(length: usize, rank: usize, world_size: usize) -> Range<usize> {
    let before = |rank: usize| (length as u128 * rank as u128 / world_size as u128) as usize;
    before(rank)..before(rank + 1)
}

/// A world of one.
#[derive(Debug, Default)]
pub struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn reduce_scatter(&mut self, _: Numbers<'_>, _: Op) -> Result<()> {
        Ok(())
    }

    fn all_gather(&mut self, _: Numbers<'_>) -> Result<()> {
        Ok(())
    }

    fn all_reduce(&mut self, _: Numbers<'_>, _: Op) -> Result<()> {
        Ok(())
    }

    fn broadcast(&mut self, _: Numbers<'_>, _: usize) -> Result<()> {
        Ok(())
    }

    fn barrier(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Deals a step's records to ranks: positions in the batch, for each rank in the batch's order.
///
/// Wanted: depends on the costs and the world size alone; every position dealt once; no rank much more loaded than
/// another. The dearest first, each to the least loaded rank so far (the first of equals).
pub fn deal(costs: &[usize], world_size: usize) -> Vec<Vec<usize>> {
    assert!(world_size > 0, "a world has members");
    let mut dearest_first: Vec<usize> = (0..costs.len()).collect();
    dearest_first.sort_by_key(|&position| (std::cmp::Reverse(costs[position]), position));
    let mut dealt = vec![Vec::new(); world_size];
    let mut load = vec![0usize; world_size];
    for position in dearest_first {
        let rank = (0..world_size).min_by_key(|&rank| (load[rank], rank)).expect("a world has members");
        load[rank] += costs[position];
        dealt[rank].push(position);
    }
    for positions in &mut dealt {
        positions.sort_unstable();
    }
    dealt
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::keyed_random::KeyedRandom;

    #[test]
    fn every_record_is_dealt_once_and_loads_are_even() {
        for seed in 0..200 {
            let mut random = KeyedRandom::new(&[seed]);
            let world_size = 1 + random.below(5) as usize;
            let costs: Vec<usize> = (0..random.below(40)).map(|_| 1 + random.below(300) as usize).collect();
            let dealt = deal(&costs, world_size);
            assert_eq!(dealt.len(), world_size);
            let mut all: Vec<usize> = dealt.concat();
            all.sort_unstable();
            assert_eq!(all, (0..costs.len()).collect::<Vec<_>>(), "seed {seed}");
            let loads: Vec<usize> = dealt.iter().map(|d| d.iter().map(|&p| costs[p]).sum()).collect();
            let (low, high) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
            assert!(high - low <= costs.iter().max().copied().unwrap_or(0), "seed {seed}: {loads:?}");
        }
    }

    #[test]
    fn a_world_of_one_keeps_the_order_of_the_batch() {
        assert_eq!(deal(&[3, 9, 1], 1), [[0, 1, 2]]);
    }
}
