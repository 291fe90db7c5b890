//! Suggestions after a typo.

/// Returns the candidate that is most similar to `word`, if one is similar enough.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The similarity that clap requires for its own suggestions.
    const MIN_SIMILARITY: f64 = 0.7;
    // A distance of 1 (for example, two swapped letters) is one mistake. Jaro-Winkler rates it too low in short words.
    let similarity = |candidate| match strsim::osa_distance(word, candidate) {
        0 | 1 if candidate.len() > 2 => 1.0,
        _ => strsim::jaro_winkler(word, candidate),
    };
    let rated = candidates.into_iter().map(|candidate| (similarity(candidate), candidate));
    let best = rated.filter(|(similarity, _)| *similarity > MIN_SIMILARITY).max_by(|(a, _), (b, _)| a.total_cmp(b));
    best.map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_similar_word_is_suggested_if_any_is_similar() {
        assert_eq!(nearest("ordres", ["other", "orders"]), Some("orders"));
        assert_eq!(nearest("tow", ["a", "two"]), Some("two"));
        assert_eq!(nearest("tow", ["database"]), None);
    }
}
