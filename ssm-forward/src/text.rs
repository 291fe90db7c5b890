//! Limits the length of texts from outside before they are stored or reported.

/// Maximum length of a stored text, in bytes. A longer text does not explain more, and many texts may be stored.
const MAX: usize = 4 << 10;

/// Joins the lines of a text to one line, and cuts it like [`bounded`].
pub(crate) fn one_line(text: &str) -> String {
    // The text is cut first, so that a very long text is not copied.
    let words: Vec<&str> = text.get(..text.floor_char_boundary(2 * MAX)).unwrap_or(text).split_whitespace().collect();
    bounded(words.join(" "))
}

/// Returns the text. A very long one is cut, with an ellipsis.
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
