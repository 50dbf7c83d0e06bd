//! Learning rate by step, and which records form which batch: functions of settings, seed and step alone.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use shared::keyed_random::KeyedRandom;
use shared::record::Record;

const ORDER_STREAM: u64 = 0x6f72_6465;
const REPLAY_STREAM: u64 = 0x7265_706c;

/// Returns the learning rate of step t (from 0) of `total`: linear warm-up from 0, then half a cosine to 0 (spec 6).
pub fn learning_rate(peak: f64, warmup: u64, total: u64, step: u64) -> f64 {
    if step < warmup {
        return peak * step as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / (total - warmup).max(1) as f64;
    peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
}

/// Returns the default warm-up: 100 steps or a tenth of the run, whichever is shorter.
pub fn default_warmup(total: u64) -> u64 {
    (total / 10).min(100)
}

/// What a batch is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Batching {
    /// One shuffle of all records: a batch has what falls into it
    #[default]
    Mixed,
    /// A part of every category in every batch, as Algorithm 1 draws them: each category is shuffled by itself, and every
    /// batch has its share of the set, to within two records
    ByCategory,
}

impl Batching {
    /// Returns a number for each record's group; groups are shuffled by themselves and dealt evenly over the batches.
    pub fn groups(self, records: &[Record]) -> Vec<usize> {
        let group = |record: &Record| match (self, record.category) {
            (Batching::Mixed, _) | (Batching::ByCategory, None) => 0,
            (Batching::ByCategory, Some(category)) => 1 + category as usize,
        };
        records.iter().map(group).collect()
    }
}

/// The order of a run's batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Records in the set.
    pub records: usize,
    /// Records an optimiser step (batch size × accumulation).
    pub global_batch: usize,
    /// Passes over the set.
    pub epochs: u64,
    /// Stops after so many steps, if given.
    pub max_steps: Option<u64>,
    /// Seed of the order.
    pub seed: u64,
}

impl Plan {
    /// Returns the number of steps of one epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.records.div_ceil(self.global_batch) as u64
    }

    /// Returns the number of optimiser steps of the run.
    pub fn total_steps(&self) -> u64 {
        match self.max_steps {
            Some(steps) => steps,
            None => self.steps_per_epoch().saturating_mul(self.epochs),
        }
    }

    /// Returns the epoch a step belongs to.
    pub fn epoch_of(&self, step: u64) -> u64 {
        step / self.steps_per_epoch()
    }

    /// Returns the shuffled order of one epoch. `groups` says to which group each record belongs: the k-th of n records of a
    /// group comes at the fraction (k + ½) / n of the epoch.
    pub fn epoch_order(&self, epoch: u64, groups: &[usize]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.records).collect();
        KeyedRandom::new(&[self.seed, ORDER_STREAM, epoch]).shuffle(&mut order);
        let sizes =
            groups.iter().fold(vec![0u64; 1 + groups.iter().max().copied().unwrap_or(0)], |mut sizes, group| {
                sizes[*group] += 1;
                sizes
            });
        let mut placed = vec![0u64; sizes.len()];
        let mut places: Vec<(f64, usize)> = order
            .into_iter()
            .map(|record| {
                let group = groups[record];
                placed[group] += 1;
                ((placed[group] as f64 - 0.5) / sizes[group] as f64, record)
            })
            .collect();
        // Stable: one group keeps its order.
        places.sort_by(|a, b| a.0.total_cmp(&b.0));
        places.into_iter().map(|(_, record)| record).collect()
    }

    /// Returns the place of a step's records within its epoch's order.
    pub fn batch_range(&self, step: u64) -> std::ops::Range<usize> {
        let start = (step % self.steps_per_epoch()) as usize * self.global_batch;
        start..(start + self.global_batch).min(self.records)
    }
}

/// Returns `count` distinct indices below `records` for a step's replay batch.
pub fn replay_batch(seed: u64, step: u64, records: usize, count: usize) -> Vec<usize> {
    let mut random = KeyedRandom::new(&[seed, REPLAY_STREAM, step]);
    let mut picked = std::collections::BTreeSet::new();
    while picked.len() < count.min(records) {
        picked.insert(random.below(records as u64) as usize);
    }
    picked.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedule_of_spec_6() {
        // 100 warm-up steps of 834, peak 1e-4.
        assert_eq!(learning_rate(1e-4, 100, 834, 0), 0.0);
        assert!((learning_rate(1e-4, 100, 834, 50) - 0.5e-4).abs() < 1e-18);
        assert_eq!(learning_rate(1e-4, 100, 834, 100), 1e-4);
        assert!((learning_rate(1e-4, 100, 834, 467) - 0.5e-4).abs() < 1e-10);
        assert!(learning_rate(1e-4, 100, 834, 833) < 1e-9);
        assert_eq!(default_warmup(225), 22);
        assert_eq!(default_warmup(5000), 100);
    }

    #[test]
    fn every_record_comes_once_an_epoch_in_another_order() {
        let plan = Plan { records: 10, global_batch: 4, epochs: 2, max_steps: None, seed: 1 };
        assert_eq!(plan.total_steps(), 6);
        for epoch in 0..2 {
            let order = plan.epoch_order(epoch, &[0; 10]);
            let mut seen: Vec<usize> =
                (epoch * 3..epoch * 3 + 3).flat_map(|step| order[plan.batch_range(step)].to_vec()).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(plan.epoch_order(0, &[0; 10]), plan.epoch_order(1, &[0; 10]));
        assert_eq!(plan.batch_range(2), 8..10);
    }

    #[test]
    fn every_batch_has_its_part_of_every_group() {
        let plan = Plan { records: 60, global_batch: 10, epochs: 1, max_steps: None, seed: 1 };
        let groups: Vec<usize> =
            (0..60).map(|record| if record < 6 { 1 } else { 2 + usize::from(record < 24) }).collect();
        let order = plan.epoch_order(0, &groups);
        for step in 0..6 {
            let batch = &order[plan.batch_range(step)];
            let of = |group: usize| batch.iter().filter(|record| groups[**record] == group).count();
            assert_eq!((of(1), of(3), of(2)), (1, 3, 6), "step {step}");
        }
        let mut all = order.clone();
        all.sort_unstable();
        assert_eq!(all, (0..60).collect::<Vec<_>>());
        assert_ne!(order, plan.epoch_order(1, &groups));
    }

    #[test]
    fn replay_batches_are_distinct_and_depend_on_the_step() {
        let a = replay_batch(1, 0, 100, 16);
        assert_eq!(a.len(), 16);
        assert_ne!(a, replay_batch(1, 1, 100, 16));
        assert_eq!(replay_batch(1, 0, 3, 16).len(), 3);
    }
}
