//! Placeholder main replaced by the harness.
fn main() {}
