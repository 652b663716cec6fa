//! Space that nobody wants any more: counted as it dies.

pub(crate) mod footprint;
