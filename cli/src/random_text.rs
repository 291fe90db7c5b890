//! Texts that look like input, for tests of parsers.

use proptest::prelude::*;

/// Generates texts of up to 23 parts. Most parts are words of `words`, the others are single arbitrary characters.
pub(crate) fn of_words(words: &'static [&'static str]) -> impl Strategy<Value = String> {
    let word = proptest::sample::select(words).prop_map(str::to_owned);
    let part = prop_oneof![4 => word, 1 => any::<char>().prop_map(String::from)];
    proptest::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}
