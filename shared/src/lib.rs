//! What at least two of the programs use: records, their files, the reference generator, the gold batch, rules.

pub mod policy_shift;
pub mod record;
