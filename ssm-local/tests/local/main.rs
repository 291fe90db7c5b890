//! A whole local Session Manager from outside, over its port.

mod common;
mod replay;
mod service;
