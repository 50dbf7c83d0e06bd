//! From records to token sequences: tokenizer files, chat template, masks and truncation.
//!
//! Owns everything between a text and the integers the model sees, in the two mask modes of spec 3.5. Promises that
//! every position it calls scored can be scored (it has a predecessor), that a result is never empty, and that equal
//! input gives equal tokens on any machine: templates that print today's date are given a fixed one.
//! Leaves to others: padding, packing, sharing a prompt between two responses, and the record's name in an error.

mod encode;
mod error;
mod template;
mod tokenizer;

pub use encode::{Encoder, EncoderOptions, MaskMode, Sequence, TextRule};
pub use error::TextError;
pub use template::Date;
