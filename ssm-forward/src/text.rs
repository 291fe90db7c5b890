//! Limits texts from outside before they are stored or reported.

/// Maximum length of a stored text in bytes. Longer ones explain nothing, and there may be many.
const MAX: usize = 4 << 10;

/// One line of a text that may have several, cut like [`bounded`].
pub(crate) fn one_line(text: &str) -> String {
    // Cut first, so that an endless text is not copied.
    let words: Vec<&str> = text.get(..text.floor_char_boundary(2 * MAX)).unwrap_or(text).split_whitespace().collect();
    bounded(words.join(" "))
}

/// The text, cut with an ellipsis if it is very long.
pub(crate) fn bounded(mut text: String) -> String {
    if text.len() > MAX {
        text.truncate(text.floor_char_boundary(MAX));
        text.push('…');
        text.shrink_to_fit();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_two_characters() {
        for text in ["x".repeat(1 << 20), "é".repeat(1 << 20), format!("x{}", "é".repeat(1 << 20))] {
            let cut = bounded(text.clone());
            assert!(cut.len() <= MAX + '…'.len_utf8() && cut.ends_with('…') && cut.capacity() < 2 * MAX);
            assert_eq!(one_line(&text), cut);
        }
        assert_eq!(bounded("short".into()), "short");
        assert_eq!(one_line(" a\n b\r\n"), "a b");
    }
}
