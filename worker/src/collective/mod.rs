//! What the ranks of a gang do together: sums of their numbers, equal to the bit on every rank.
//!
//! Every call has a deadline; a failure ends the attempt on every rank. A world of one is a real implementation that has
//! nothing to do.

pub mod ring;

use crate::error::Result;

/// The members of one attempt at a training task, seen from one of them.
pub trait Collective: Send {
    /// This member's number, from 0.
    fn rank(&self) -> usize;

    /// How many members there are.
    fn world_size(&self) -> usize;

    /// Replaces every number by its sum over all ranks. All ranks must call with the same length.
    ///
    /// # Errors
    /// A member is gone or too late.
    fn all_reduce(&mut self, numbers: &mut [f32]) -> Result<()>;

    /// As [`Collective::all_reduce`], in double precision.
    ///
    /// # Errors
    /// A member is gone or too late.
    fn all_reduce_f64(&mut self, numbers: &mut [f64]) -> Result<()>;

    /// Returns every rank's number, in rank order.
    ///
    /// # Errors
    /// A member is gone or too late.
    fn all_gather_f64(&mut self, number: f64) -> Result<Vec<f64>> {
        let mut all = vec![0.0; self.world_size()];
        all[self.rank()] = number;
        self.all_reduce_f64(&mut all)?;
        Ok(all)
    }

    /// Returns rank 0's number on every rank.
    ///
    /// # Errors
    /// A member is gone or too late.
    fn first_of(&mut self, number: f64) -> Result<f64> {
        Ok(self.all_gather_f64(number)?[0])
    }
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

    fn all_reduce(&mut self, _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn all_reduce_f64(&mut self, _: &mut [f64]) -> Result<()> {
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
