//! A whole local Session Manager from outside, over its port.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test that is the assertion")]

mod common;
mod faults;
mod replay;
mod service;
