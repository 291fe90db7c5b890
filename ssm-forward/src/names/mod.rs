//! The names of managed nodes, and of the services behind them.

mod service;
mod target;

pub use service::{ServiceKind, ServiceSpec};
pub use target::TargetSpec;
