//! Maps remote names to tunnels: assigns local addresses to the names, and writes files like `/etc/hosts` with them.

mod addresses;
mod block;
mod file;
mod machine;
mod writer;

use addresses::as_name;
pub(crate) use addresses::{Name, assign, gets_name, tell};
pub(crate) use file::{files_first, with_names};
pub(crate) use machine::HostsFile;
pub(crate) use writer::become_writer;
