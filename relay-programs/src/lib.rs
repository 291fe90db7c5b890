//! The relay programs that can be placed on nodes. The build script builds the program for this machine's kind.

use ssm_forward::RelayProgram;

/// The relay programs of this build, one for each kind of machine. The list can be empty: see `docs/relay.md`.
pub const PROGRAMS: &[RelayProgram] = include!(concat!(env!("OUT_DIR"), "/relay_programs.rs"));
