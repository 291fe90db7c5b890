//! A whole local Session Manager, tested through its port.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test, this is the assertion")]

mod access;
mod common;
mod faults;
#[path = "../support/http.rs"]
mod http;
mod replay;
mod service;
