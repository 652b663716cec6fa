//! kv-fabric
