//! Tests that run the real binary and check its behaviour, its output and its exit codes.

#[cfg(test)]
mod bytes;
#[cfg(test)]
mod common;
#[cfg(test)]
mod cp;
#[cfg(test)]
mod demo;
#[cfg(test)]
mod documents;
#[cfg(test)]
mod errors;
#[cfg(test)]
mod exec;
#[cfg(test)]
mod exec_input;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod feeds;
#[cfg(test)]
mod forward;
#[cfg(test)]
mod leaks;
#[cfg(test)]
mod local;
#[cfg(test)]
mod plugin;
#[cfg(test)]
mod plugin_parent;
#[cfg(test)]
mod plugin_shell;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod relay;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod shell;
#[cfg(test)]
mod terminal;
#[cfg(test)]
mod unread;
#[cfg(test)]
mod usage;
#[cfg(test)]
mod wait_connected;
