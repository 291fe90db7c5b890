//! Prepares untrusted text for display. Such text comes from the node, the API and session documents, and must not control the
//! terminal.

/// Maximum length of a text in characters. Longer texts are cut.
const MAX: usize = 4096;

/// Returns the text as one line in which every character is visible. Control characters, line breaks, marks that change the
/// writing direction and characters without a width are escaped, such as `\u{202e}`. Visible characters are unchanged.
pub(crate) fn line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(MAX));
    let mut characters = text.chars();
    characters.by_ref().take(MAX).for_each(|character| show(character, &mut line));
    match characters.count() {
        0 => {}
        more => line.push_str(&format!("… ({more} more characters)")),
    }
    line
}

/// Like [`line()`], but keeps line breaks. All lines except the first are indented, so that none of them looks like a line of
/// this program.
pub(crate) fn lines(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(line).collect();
    lines.join("\n  ")
}

/// Prepares a line of the log: like [`line()`], but keeps the line end and the colors of the log's formatter, and does not cut.
pub(crate) fn log_line(text: &str) -> String {
    let (text, end) = text.strip_suffix('\n').map_or((text, ""), |text| (text, "\n"));
    let mut shown = String::with_capacity(text.len() + end.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        before.chars().for_each(|character| show(character, &mut shown));
        let color = after.strip_prefix('[').and_then(|code| {
            let length = code.find(|character: char| !matches!(character, '0'..='9' | ';'))?;
            code.get(length..)?.starts_with('m').then_some(length + "[m".len())
        });
        let (color, after) = color.map_or((None, after), |length| {
            let (color, after) = after.split_at(length);
            (Some(color), after)
        });
        match color {
            Some(color) => shown.extend(["\u{1b}", color]),
            None => show('\u{1b}', &mut shown),
        }
        rest = after;
    }
    rest.chars().for_each(|character| show(character, &mut shown));
    shown + end
}

fn show(character: char, line: &mut String) {
    match character {
        ' '..='~' => line.push(character),
        // `escape_debug` decides which characters are visible. The preceding letter keeps it from escaping a combining accent.
        _ => line.extend(['a', character].iter().collect::<String>().escape_debug().skip(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_stays_and_what_is_not_is_spelled() {
        for plain in ["a \"b\" 'c' \\ d", "é ü ß 日本語 Ελ", "e\u{301}", "✓ … →", "\\u{202e}"] {
            assert_eq!(line(plain), plain);
        }
        for (hidden, spelled) in [
            ("\u{1b}[2J\u{1b}]0;x\u{7}", "\\u{1b}[2J\\u{1b}]0;x\\u{7}"),
            ("a\nb\r\nc\td\0", "a\\nb\\r\\nc\\td\\0"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("\u{202e}\u{2066}\u{2069}\u{200f}\u{61c}", "\\u{202e}\\u{2066}\\u{2069}\\u{200f}\\u{61c}"),
            ("\u{200b}\u{200d}\u{feff}\u{2060}\u{ad}", "\\u{200b}\\u{200d}\\u{feff}\\u{2060}\\u{ad}"),
            ("\u{2028}\u{2029}\u{85}", "\\u{2028}\\u{2029}\\u{85}"),
            ("\u{e0041}\u{fff9}", "\\u{e0041}\\u{fff9}"),
        ] {
            assert_eq!(line(hidden), spelled);
            assert_eq!(line(spelled), spelled, "once shown, it stays");
        }
    }

    #[test]
    fn a_flood_is_cut() {
        let shown = line(&"x".repeat(1 << 20));
        assert!(shown.len() < 5000 && shown.ends_with("(1044480 more characters)"), "{}", shown.len());
    }

    #[test]
    fn several_lines_stay_lines_and_none_looks_like_another() {
        assert_eq!(lines("one\r\nError: \u{1b}c\n"), "one\n  Error: \\u{1b}c");
        assert_eq!(lines(""), "");
    }

    #[test]
    fn a_log_keeps_its_own_colors_and_nothing_else() {
        let text = "\u{1b}[2m12:00\u{1b}[0m \u{1b}[1;33mWARN\u{1b}[0m a\nb \u{1b}[2J \u{1b}]0;x \u{202e}\u{1b}";
        assert_eq!(
            log_line(&format!("{text}\n")),
            "\u{1b}[2m12:00\u{1b}[0m \u{1b}[1;33mWARN\u{1b}[0m a\\nb \\u{1b}[2J \\u{1b}]0;x \\u{202e}\\u{1b}\n"
        );
    }
}
