//! Random texts that are similar to valid input, for tests of parsers.

use proptest::prelude::*;

/// Generates texts of `words` and arbitrary characters, in any order.
pub(crate) fn of_words(words: &'static [&'static str]) -> impl Strategy<Value = String> {
    let word = proptest::sample::select(words).prop_map(str::to_owned);
    let part = prop_oneof![4 => word, 1 => any::<char>().prop_map(String::from)];
    proptest::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}
