//! oracle-service
