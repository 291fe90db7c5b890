//! Benchmarks of the forwarding path.

pub mod parts;
