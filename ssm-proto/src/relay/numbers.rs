//! A set of seen numbers: all numbers below a floor, and some above it.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};

/// The numbers that this end has seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    floor: u64,
    above: BTreeSet<u64>,
}

/// The result of [`Seen::insert`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inserted {
    New,
    Known,
    /// The number is further above the floor than the protocol allows.
    TooFar,
}

impl Seen {
    pub(super) fn contains(&self, number: u64) -> bool {
        number < self.floor || self.above.contains(&number)
    }

    /// Adds a number, which must be less than `span` above the lowest missing number.
    pub(super) fn insert(&mut self, number: u64, span: u64) -> Inserted {
        if self.contains(number) {
            return Inserted::Known;
        }
        if number - self.floor >= span {
            return Inserted::TooFar;
        }
        self.above.insert(number);
        while self.above.remove(&self.floor) {
            self.floor += 1;
        }
        Inserted::New
    }

    /// Returns a copy to be sent to the other end.
    pub(super) fn numbers(&self) -> Numbers {
        let bits = self.above.last().map_or(0, |last| last - self.floor + 1);
        let mut above = BytesMut::zeroed(usize::try_from(bits.div_ceil(8)).unwrap_or(usize::MAX));
        for number in &self.above {
            let (byte, bit) = place(number - self.floor);
            if let Some(byte) = above.get_mut(byte) {
                *byte |= bit;
            }
        }
        Numbers { floor: self.floor, above: above.freeze() }
    }
}

/// The numbers that the other end has seen (RELAY-18).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    /// The other end has seen all numbers below this one.
    pub(super) floor: u64,
    /// One bit for each number from the floor on, the highest bit of a byte first.
    pub(super) above: Bytes,
}

impl Numbers {
    pub(super) fn contains(&self, number: u64) -> bool {
        let Some(above) = number.checked_sub(self.floor) else { return true };
        let (byte, bit) = place(above);
        self.above.get(byte).is_some_and(|byte| byte & bit != 0)
    }

    /// Returns whether all numbers in the set are below `limit`.
    pub(super) fn are_below(&self, limit: u64) -> bool {
        let bits = self.above.iter().flat_map(|byte| (0..8).map(move |at| byte & (0x80 >> at) != 0));
        let above = (1..).zip(bits).filter(|(_, seen)| *seen).last().map_or(0, |(count, _)| count);
        self.floor.checked_add(above).is_some_and(|end| end <= limit)
    }
}

/// Returns the byte and the bit for a number that is `above` the floor.
fn place(above: u64) -> (usize, u8) {
    (usize::try_from(above / 8).unwrap_or(usize::MAX), 0x80 >> (above % 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_new_once_whatever_the_order() {
        let mut seen = Seen::default();
        for number in [3, 0, 2, 1, 9] {
            assert_eq!(seen.insert(number, 10), Inserted::New);
            assert_eq!(seen.insert(number, 10), Inserted::Known);
        }
        assert_eq!((seen.floor, seen.above.len()), (4, 1));
        assert_eq!(seen.insert(14, 10), Inserted::TooFar);
        assert!(seen.contains(3) && !seen.contains(4));
    }

    #[test]
    fn the_other_end_learns_exactly_what_was_seen() {
        let mut seen = Seen::default();
        assert_eq!(seen.numbers(), Numbers { floor: 0, above: Bytes::new() });
        for number in [0, 1, 2, 4, 11, 19] {
            seen.insert(number, 100);
        }
        let numbers = seen.numbers();
        assert_eq!(numbers, Numbers { floor: 3, above: Bytes::from_static(&[0x40, 0x80, 0x80]) });
        assert!((0..100).all(|number| numbers.contains(number) == seen.contains(number)));
        assert!(numbers.are_below(20) && !numbers.are_below(19) && !numbers.are_below(2));
        // Arithmetic at the largest possible numbers.
        let last = Numbers { floor: u64::MAX, above: Bytes::from_static(&[0x80]) };
        assert!(last.contains(u64::MAX) && !last.are_below(u64::MAX - 1));
    }
}
