//! Variations of inputs, so that every build of the tests tries more than the corpus without a fuzzer.

use fastrand::Rng;

/// Numbers at which the behaviour of programs often changes.
const EDGES: [u8; 8] = [0, 1, 2, 16, 127, 128, 254, 255];

/// Changes `data` in a few positions. `other` is another input, pieces of which are inserted.
pub fn vary(rng: &mut Rng, data: &mut Vec<u8>, other: &[u8], longest: usize) {
    for _ in 0..rng.usize(1..=4) {
        let at = rng.usize(..=data.len());
        let end = data.len().min(at + rng.usize(1..=8));
        match rng.u8(..7) {
            0 => data.get_mut(at).into_iter().for_each(|byte| *byte = rng.u8(..)),
            1 => data.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << rng.u8(..8)),
            2 => data.get_mut(at).into_iter().for_each(|byte| *byte = rng.choice(EDGES).unwrap_or(0)),
            3 => drop(data.drain(at..end)),
            4 => drop(data.splice(at..at, piece(rng, other))),
            5 => drop(data.splice(at..end, piece(rng, other))),
            _ => {
                let repeated = data.get(at..end).unwrap_or_default().to_vec();
                drop(data.splice(at..at, repeated));
            }
        }
    }
    data.truncate(longest);
}

fn piece(rng: &mut Rng, other: &[u8]) -> Vec<u8> {
    let from = rng.usize(..=other.len());
    let length = rng.usize(..=(other.len() - from).min(64));
    other.get(from..from + length).unwrap_or_default().to_vec()
}
