//! The kinds of traffic.

use std::fmt;
use std::time::Duration;

use ssm_local::Profile;

use crate::cases::{Case, ONE_AT_A_TIME};
use crate::load::{Pauses, Script};
use crate::program::Manner;

/// The traffic of one cell.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    Upload,
    Download,
    Idle,
    Crowd,
    /// The program closes its sending side immediately; the answer arrives in pieces.
    HalfClosed,
    /// One program always reads slowly, one pauses for longer than the linger.
    SlowReaders,
    /// Some programs reset their connections, some close them without waiting for an answer, some do neither.
    HangUps,
}

/// A program of a cell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    pub(crate) script: Script,
    pub(crate) manner: Manner,
}

/// Longer than the linger of the matrix.
const PAUSE: Duration = Duration::from_secs(4);

impl Load {
    pub(crate) const ALL: [Self; 7] =
        [Self::Upload, Self::Download, Self::Idle, Self::Crowd, Self::HalfClosed, Self::SlowReaders, Self::HangUps];

    pub(crate) fn programs(self, profile: Profile, case: &Case) -> Vec<Program> {
        // A real agent carries about 600 kB/s.
        let burst = if profile == Profile::Real { 32 << 10 } else { 192 << 10 };
        let seed = fastrand::u64(..);
        let bulk = Script { seed, rounds: 1, up: 64, down: 64, burst, pause: 80, deaf: 0 };
        let (rounds, pause) = if case.faults.contains(&ONE_AT_A_TIME) { (2, 1) } else { (16, 150) };
        let prompt = |script| Program { script, manner: Manner::PROMPT };
        let with_seed = |number: u64, script| Script { seed: seed.wrapping_add(number), ..script };
        match self {
            Self::Upload => vec![prompt(Script { up: burst * 30, ..bulk })],
            Self::Download => vec![prompt(Script { down: burst * 30, ..bulk })],
            Self::Idle => vec![prompt(Script { rounds: 2, pause: 2600, ..bulk })],
            Self::Crowd => {
                let script = Script { rounds, up: 700, down: 900, pause, ..bulk };
                (0..50).map(|number| prompt(with_seed(number, script))).collect()
            }
            Self::HalfClosed => vec![prompt(Script { down: burst * 6, pause: 1200, ..bulk })],
            Self::SlowReaders => {
                // Under faults that disconnect it repeatedly, a real agent carries little more than 10 kB/s.
                let pieces = if profile == Profile::Real { 20 } else { 60 };
                let long = Script { down: burst * pieces, pause: 0, ..bulk };
                let slow = Pauses { every: 64 << 10, time: Duration::from_millis(20) };
                let pausing = Pauses { every: burst as usize * pieces as usize / 2 - 1, time: PAUSE };
                let pauses = (0..).zip([slow, pausing]);
                pauses
                    .map(|(number, pauses)| Program { script: with_seed(number, long), manner: Manner::Whole(pauses) })
                    .collect()
            }
            Self::HangUps => {
                let reset = (Script { up: 30_000, down: burst * 10, ..bulk }, Manner::Reset { after: 50_000 });
                let close = (Script { up: burst * 4, ..bulk }, Manner::Close);
                let whole = (Script { rounds: 4, up: 700, down: 900, pause: 300, ..bulk }, Manner::PROMPT);
                let kinds = [reset, close, whole].into_iter().cycle().take(12);
                (0..)
                    .zip(kinds)
                    .map(|(number, (script, manner))| Program { script: with_seed(number, script), manner })
                    .collect()
            }
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Upload => "upload",
            Self::Download => "download",
            Self::Idle => "idle",
            Self::Crowd => "50 connections",
            Self::HalfClosed => "half-closed",
            Self::SlowReaders => "slow readers",
            Self::HangUps => "hang-ups",
        })
    }
}
