//! The set of numbers that were seen: all below a floor, and some above it.

use std::collections::BTreeSet;

/// See the module.
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
    /// Further above the floor than the protocol allows.
    TooFar,
}

impl Seen {
    pub(super) fn contains(&self, number: u64) -> bool {
        number < self.floor || self.above.contains(&number)
    }

    /// Adds a number, which must be less than `span` above the lowest missing one.
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
}
