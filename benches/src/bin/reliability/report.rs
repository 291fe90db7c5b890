//! Output of results: to stdout, and into the documentation between two marks.

use std::io::Write as _;
use std::path::Path;

use crate::tunnel::SetupError;

/// Prints a line. A closed standard output is not an error.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints an error.
pub(crate) fn say_error(line: &str) {
    let _ = writeln!(std::io::stderr(), "error: {line}");
}

/// Writes `text` between the marks `<!-- NAME -->` and `<!-- /NAME -->` of the file.
pub(crate) fn write_between(file: &Path, name: &str, text: &str) -> Result<(), SetupError> {
    let before = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let after = replace(&before, name, text).ok_or_else(|| format!("{} has no marks {name}", file.display()))?;
    std::fs::write(file, after)?;
    Ok(())
}

fn replace(document: &str, name: &str, text: &str) -> Option<String> {
    let (start, end) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let (head, rest) = document.split_once(&start)?;
    let (_, tail) = rest.split_once(&end)?;
    Some(format!("{head}{start}\n{}\n{end}{tail}", text.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let document = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n";
        assert_eq!(replace(document, "x", "new\n").unwrap(), "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n");
        assert_eq!(replace(document, "y", "new"), None);
    }
}
