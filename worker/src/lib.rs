//! worker

pub mod text;
