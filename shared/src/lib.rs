//! What at least two of the programs use: records, their files, the reference generator, the gold batch, rules.

pub mod keyed_random;
pub mod record;
