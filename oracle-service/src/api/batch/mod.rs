//! The batch API: many questions in one file, at half the price, within a day.
//!
//! [`rounds`] gathers a job's questions into parts on disk and has them answered; [`part`] says what a part does next,
//! [`drive`] does it. A part is saved before each step counts, and carries a tag by which its batch is found again when
//! the process died before it learnt the batch's id: nothing is paid for twice.

mod board;
mod cancel;
mod drive;
mod gather;
mod http;
mod lines;
mod options;
mod part;
mod parts;
mod plan;
mod rounds;

pub(crate) use cancel::cancel;
pub(crate) use gather::Front;
pub(crate) use http::Api;
pub(crate) use options::{BatchArgs, Mode, PaceArgs, parse_duration};
pub(crate) use part::{Part, Phase};
pub(crate) use parts::Parts;
pub(crate) use rounds::run;
