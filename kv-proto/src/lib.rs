//! kv-proto
