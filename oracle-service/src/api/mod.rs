//! A language model behind an OpenAI-compatible API: what is asked, how it is read, what it costs, and the ledger that
//! keeps every paid answer.
//!
//! ```text
//! item ─▶ request (pure) ─▶ ledger: known? ──yes──▶ reading (pure)
//!                              │ no
//!                              ▼
//!           place in line ─▶ intent (synced) ─▶ HTTP ─▶ answer (synced) ─▶ reading
//!                   ▲                            │ failed for now
//!                   └────── back-off (pure) ◀────┘
//! ```

pub(crate) mod confidence;
pub(crate) mod engine;
pub(crate) mod ledger;
mod openai;
pub(crate) mod prices;
pub(crate) mod reading;
pub(crate) mod request;
mod retry;
