//! The wire and nothing else: generated messages. The `.proto` files are their reference.

/// Preference records and their labels.
#[allow(missing_docs)]
pub mod common {
    include!(concat!(env!("OUT_DIR"), "/trace.common.rs"));
}
