//! rdma-core-rs
