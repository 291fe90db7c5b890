//! Benchmarks of the forwarding path.

pub mod parts;
pub mod work;
