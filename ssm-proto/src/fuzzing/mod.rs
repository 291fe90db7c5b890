//! The bodies of the fuzz targets, as ordinary functions. Tests also run them over the corpus and over variations of it.

mod bodies;
mod end;
mod input;
mod keys;
mod link;
mod messages;
mod sealed;
mod sessions;
mod variation;

pub use bodies::{agent_handshake, client_handshake};
pub use link::{relay_input, relay_link};
pub use messages::{acknowledge, control_message, decode_message, deframe};
pub use sealed::{sealed_input, session_input};
pub use sessions::session_pair;
pub use variation::vary;

use std::time::Instant;

/// A fuzz target: its name, and its body, which panics if the input violates a documented property. The `Instant` is the start of
/// the virtual time.
pub type Target = (&'static str, fn(&[u8], Instant));

/// All targets. Each target has a program in `fuzz/fuzz_targets` and inputs in `fuzz/corpus`.
pub const TARGETS: [Target; 11] = [
    ("decode_message", |data, _| decode_message(data)),
    ("deframe", |data, _| deframe(data)),
    ("acknowledge", |data, _| acknowledge(data)),
    ("control_message", |data, _| control_message(data)),
    ("client_handshake", |data, _| client_handshake(data)),
    ("agent_handshake", agent_handshake),
    ("session_input", session_input),
    ("sealed_input", sealed_input),
    ("session_pair", session_pair),
    ("relay_input", relay_input),
    ("relay_link", relay_link),
];
