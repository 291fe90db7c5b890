//! How people name what they want to reach: managed nodes, and the services behind them.

mod service;
mod target;

pub use service::{ServiceKind, ServiceSpec};
pub use target::TargetSpec;
