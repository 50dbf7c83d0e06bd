//! The wire and nothing else: generated messages and services. The `.proto` files are their reference.

/// Version of the protocol between coordinator and worker; both must have the same.
pub const PROTOCOL_VERSION: u32 = 3;

/// Largest message that either side sends or takes, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The coordinator's services.
#[allow(missing_docs)]
pub mod coordinator {
    tonic::include_proto!("trace.coordinator");
}

/// The oracle service.
#[allow(missing_docs)]
pub mod oracle {
    tonic::include_proto!("trace.oracle");
}
