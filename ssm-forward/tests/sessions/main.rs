//! Sessions against a local Session Manager, or a service that misbehaves: what the single parts can't show.

#[cfg(test)]
mod answers;
#[cfg(test)]
mod common;
#[cfg(test)]
mod detour;
#[cfg(test)]
mod half_close;
#[cfg(test)]
mod pool;
#[cfg(test)]
mod running;
#[cfg(test)]
mod service;
#[cfg(test)]
mod stalls;
#[cfg(test)]
mod streams;
