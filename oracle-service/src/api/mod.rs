//! A language model behind an OpenAI-compatible API: what is asked, how it is read, what it costs, and the ledger that
//! keeps every paid answer.
//!
//! ```text
//! item ─▶ request (pure) ─▶ ledger: known? ──yes──▶ reading (pure)
//!                              │ no
//!                              ▼
//!    gate: a turn, money (budget), leave to send (pacer), an endpoint in health
//!                              │                  ▲
//!                              ▼                  │ back-off
//!                       intent (synced) ─▶ HTTP ──┤
//!                                                 ▼
//!                                      answer (synced), settled ─▶ reading
//! ```

mod account;
pub(crate) mod batch;
mod bill;
mod budget;
pub(crate) mod confidence;
pub(crate) mod endpoint;
pub(crate) mod engine;
pub(crate) mod gate;
mod health;
pub(crate) mod ledger;
mod limits;
mod openai;
pub(crate) mod options;
pub(crate) mod pacer;
pub(crate) mod reading;
pub(crate) mod request;
mod retry;
pub(crate) mod tokens;
