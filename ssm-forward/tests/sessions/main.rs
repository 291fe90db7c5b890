//! Tests of sessions with a local Session Manager or a faulty service, for properties that tests of the parts cannot show.

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
