//! The relay's programs that can be placed on nodes. The build script builds the one for this machine's kind.

use ssm_forward::RelayProgram;

/// The programs of this build, one for each kind of machine. There may be none: see `docs/relay.md`.
pub const PROGRAMS: &[RelayProgram] = include!(concat!(env!("OUT_DIR"), "/relay_programs.rs"));
