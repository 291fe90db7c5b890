//! Remote names that lead to tunnels: addresses of this machine for them, and files like `/etc/hosts` that say so.

mod addresses;
mod file;

pub(crate) use addresses::{Name, assign};
pub(crate) use file::{files_first, with_names};
