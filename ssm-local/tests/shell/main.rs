//! Shells, commands, encryption and containers of a local Session Manager, from outside, over its port.
#![cfg(unix)]

mod client;
mod commands;
mod containers;
mod encryption;
mod replay;
mod terminals;
