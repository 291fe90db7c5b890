//! The names by which people refer to managed nodes, and to the services behind them.

mod service;
mod target;

pub use service::{ServiceKind, ServiceSpec};
pub use target::TargetSpec;
