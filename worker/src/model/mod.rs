//! The model: configuration, weights, decoder, adapter, head. Knows nothing of losses, records or files of records.

pub mod adapter_file;
pub mod attention;
pub mod config;
pub mod decoder;
pub mod dropout;
pub mod export_check;
pub mod head;
pub mod lora;
pub mod pack;
pub mod parameters;
pub mod recompute;
pub mod shards;
pub mod tangent;
pub mod tensor_file;
pub mod units;
pub mod weight_space;
pub mod weights;
