//! What at least two of the programs use: records, their files, the reference generator, the gold batch, rules.

pub mod cli;
pub mod curvature;
pub mod error;
pub mod gold;
pub mod input;
pub mod keyed_random;
pub mod link;
pub mod lock;
pub mod logging;
pub mod net;
pub mod output;
pub mod policy_shift;
pub mod prices;
pub mod python_random;
pub mod quality;
pub mod quarantine;
pub mod record;
pub mod rules;
pub mod shutdown;
pub mod spread;
pub mod stats;
pub mod store;
pub mod weights;

pub use error::{Error, Result};
