//! The worker: everything that computes with the model. One-machine commands; only this crate links libtorch.

mod bench;
mod beside;
mod cli;
mod collective;
mod control;
mod dataset;
mod determinism;
mod error;
mod fault;
mod fence;
mod generate;
#[cfg(test)]
mod golden;
mod hub;
mod in_flight;
mod journal;
mod logprobs;
mod measure;
mod merge;
mod model;
mod model_folder;
mod objective;
mod options;
mod panic;
mod placement;
mod plan;
mod pulse;
mod reference;
mod score;
mod serve;
mod signals;
pub mod text;
mod train;

pub use cli::{Cli, exit_code, run};
pub use error::{Error, Result};
pub use panic::print_bugs_only;
