//! Shells, commands, encryption and containers of a local Session Manager, tested through its port.
#![cfg(unix)]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test, this is the assertion")]

mod client;
mod commands;
mod containers;
mod encryption;
#[path = "../support/http.rs"]
mod http;
mod replay;
mod terminals;
