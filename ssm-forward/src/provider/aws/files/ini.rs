//! The INI dialect of AWS's configuration files, as Python's `configparser` reads it for the AWS CLI.

use std::collections::BTreeMap;

/// The keys of a section, in lower case, and their values. The lines of a multi-line value are joined by `\n`.
pub(super) type Keys = BTreeMap<String, String>;

/// A line that is neither a section, nor a key, nor the continuation of a value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    /// The number of the line, from 1.
    pub(super) line: usize,
    pub(super) what: &'static str,
}

/// Parses a file. Sections are in the order of their first appearance.
///
/// Unlike the AWS CLI, this function accepts duplicate sections and keys: sections are merged, and the last value is used.
pub(super) fn parse(text: &str) -> Result<Vec<(String, Keys)>, Malformed> {
    let mut reader = Reader::default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    for (at, line) in text.split('\n').enumerate() {
        reader.line(line).map_err(|what| Malformed { line: at + 1, what })?;
    }
    Ok(reader.finish())
}

/// The section whose keys are inherited by all others.
const INHERITED: &str = "DEFAULT";

#[derive(Default)]
struct Reader {
    sections: Vec<(String, BTreeMap<String, Vec<String>>)>,
    /// The current section.
    section: Option<usize>,
    /// The key whose value may continue.
    key: Option<String>,
    /// Lines with a larger indent continue the value.
    indent: usize,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), &'static str> {
        let text = line.trim_matches(is_space);
        if text.starts_with(['#', ';']) {
            return Ok(());
        }
        let indent = line.chars().take_while(|&char| is_space(char)).count();
        let continues = text.is_empty() || indent > self.indent;
        if let Some(value) = self.value().filter(|_| continues) {
            value.push(text.to_owned());
            return Ok(());
        }
        if text.is_empty() {
            return Ok(());
        }
        self.indent = indent;
        match header(text) {
            Some(name) => self.open(name),
            None => self.assign(text)?,
        }
        Ok(())
    }

    fn keys(&mut self) -> Option<&mut BTreeMap<String, Vec<String>>> {
        self.section.and_then(|at| self.sections.get_mut(at)).map(|(_, keys)| keys)
    }

    fn value(&mut self) -> Option<&mut Vec<String>> {
        let key = self.key.clone()?;
        self.keys()?.get_mut(&key)
    }

    fn open(&mut self, name: &str) {
        let known = self.sections.iter().position(|(section, _)| section == name);
        self.section = Some(known.unwrap_or_else(|| {
            self.sections.push((name.to_owned(), BTreeMap::new()));
            self.sections.len() - 1
        }));
        self.key = None;
    }

    fn assign(&mut self, text: &str) -> Result<(), &'static str> {
        let keys = self.keys().ok_or("a [section] is expected")?;
        let (key, value) = text.split_once(['=', ':']).ok_or("neither a [section] nor a key = value")?;
        let key = key.trim_end_matches(is_space).to_lowercase();
        if key.is_empty() {
            return Err("a value without a key");
        }
        keys.insert(key.clone(), vec![value.trim_matches(is_space).to_owned()]);
        self.key = Some(key);
        Ok(())
    }

    fn finish(self) -> Vec<(String, Keys)> {
        let joined = self.sections.into_iter().map(|(name, keys)| {
            let keys: Keys = keys.into_iter().map(|(key, lines)| (key, joined(&lines))).collect();
            (name, keys)
        });
        let (inherited, mut sections): (Vec<_>, Vec<_>) = joined.partition(|(name, _)| name == INHERITED);
        for (key, value) in inherited.into_iter().flat_map(|(_, keys)| keys) {
            for (_, keys) in &mut sections {
                keys.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        sections
    }
}

fn joined(lines: &[String]) -> String {
    lines.join("\n").trim_end_matches(is_space).to_owned()
}

/// Returns the text between the brackets. Text after the last bracket is ignored.
fn header(text: &str) -> Option<&str> {
    let (name, _) = text.strip_prefix('[')?.rsplit_once(']')?;
    (!name.is_empty()).then_some(name)
}

/// Whether Python treats the character as white space.
fn is_space(char: char) -> bool {
    char.is_whitespace() || ('\x1c'..='\x1f').contains(&char)
}

/// Returns the value of `key` in a value that is a block of indented lines, as in a section `services`.
pub(super) fn nested<'a>(block: &'a str, key: &str) -> Option<&'a str> {
    let lines = block.strip_prefix('\n')?.split('\n').filter_map(|line| line.split_once('='));
    lines
        .filter(|(name, _)| name.trim_matches(is_space) == key)
        .map(|(_, value)| value.trim_matches(is_space))
        .next_back()
}

/// Splits a text into words like a POSIX shell and Python's `shlex`. Returns `None` if a quote or an escape is incomplete.
pub(in super::super) fn words(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            ' ' | '\t' | '\r' | '\n' => words.extend(word.take()),
            '\\' => word.get_or_insert_default().push(chars.next()?),
            '\'' | '"' => quoted(&mut chars, char, word.get_or_insert_default())?,
            char => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    Some(words)
}

/// Reads up to the closing quote. Only double quotes have escapes: of the double quote and of the backslash.
fn quoted(chars: &mut std::str::Chars<'_>, quote: char, word: &mut String) -> Option<()> {
    loop {
        match chars.next()? {
            char if char == quote => return Some(()),
            '\\' if quote == '"' => match chars.next()? {
                char @ ('"' | '\\') => word.push(char),
                char => word.extend(['\\', char]),
            },
            char => word.push(char),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, Vec<(String, String)>)> {
        parse(text).unwrap().into_iter().map(|(name, keys)| (name, keys.into_iter().collect())).collect()
    }

    fn keys(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    /// The expected values are the ones of Python's `configparser`; `tests/real/aws_files.py` compares more of them.
    #[test]
    fn files_are_read_as_python_reads_them() {
        for (text, section, expected) in [
            ("[default]\n  region = a\n\toutput: json\n", "default", &[("output", "json"), ("region", "a")][..]),
            ("[a]\nREGION=x=y:z\n", "a", &[("region", "x=y:z")]),
            ("[a]\nk = a # no comment\n# one\n  ; two\nl=b;c", "a", &[("k", "a # no comment"), ("l", "b;c")]),
            ("\u{feff}[a]\r\nk = 1\r\n\r\n", "a", &[("k", "1")]),
            ("[profile x] # why\nk=1", "profile x", &[("k", "1")]),
            ("[a]\nk =\n  b = 1\n\n  c = 2\nl = 3", "a", &[("k", "\nb = 1\n\nc = 2"), ("l", "3")]),
            ("[a]\n  k = 1\n  l = 2\n    more\n m = 3", "a", &[("k", "1"), ("l", "2\nmore"), ("m", "3")]),
            ("[DEFAULT]\nr = 1\n[a]\nk = 2", "a", &[("k", "2"), ("r", "1")]),
            ("[a]\nk = 1\n[a]\nk = 2\nk2 =", "a", &[("k", "2"), ("k2", "")]),
            ("[profile [x]]\nk = 1", "profile [x]", &[("k", "1")]),
        ] {
            assert_eq!(read(text), [(section.to_owned(), keys(expected))], "{text:?}");
        }
        assert_eq!(read("# nothing\n\n"), []);
    }

    #[test]
    fn a_line_that_is_nothing_is_counted() {
        for (text, line) in [("region = x\n", 1), ("[a\n", 1), ("[a]\n\nregion\n", 3), ("[a]\n= x\n", 2), ("[]\n", 1)] {
            assert_eq!(parse(text).unwrap_err().line, line, "{text:?}");
        }
    }

    #[test]
    fn words_are_those_of_a_shell() {
        let split = |text| words(text).unwrap();
        assert_eq!(split(r#"profile "my dev""#), ["profile", "my dev"]);
        assert_eq!(split(r#" a\ b 'c"d\' "e\"\f" '' #g "#), ["a b", r#"c"d\"#, r#"e"\f"#, "", "#g"]);
        assert_eq!(split(""), [""; 0]);
        for open in ["'a", "\"a", "a\\", "\"a\\"] {
            assert_eq!(words(open), None, "{open}");
        }
    }

    #[test]
    fn a_block_of_a_section_of_services_is_a_table() {
        let block = "\nendpoint_url = http://x/?a=b\nother = 1";
        assert_eq!(nested(block, "endpoint_url"), Some("http://x/?a=b"));
        assert_eq!((nested(block, "none"), nested("endpoint_url = x", "endpoint_url")), (None, None));
    }

    const WORDS: &[&str] = &[
        "[",
        "]",
        "default",
        "profile a",
        "\n",
        "\n  ",
        "\r\n",
        "=",
        ":",
        "#",
        ";",
        "key",
        "value",
        " ",
        "\t",
        "'",
        "\"",
        "\\",
        "\u{85}",
    ];

    proptest::proptest! {
        #[test]
        fn any_file_is_read_or_a_line_is_named(text in crate::random_text::of_words(WORDS)) {
            outcome_of(&text);
        }
    }

    #[test]
    fn the_corpus_is_read_or_a_line_is_named() {
        let seeds: [&[u8]; 5] = [
            b"[default]\nregion = eu-west-1\n[profile a b]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = default\n",
            b"# comment\n[profile \"x\"]\nservices = s\n[services s]\nssm =\n  endpoint_url = https://x\n  key = v\n",
            b"[a]\nkey: value\n continued\n; comment\nempty =\n",
            b"[default]\ncredential_process = \"/opt/a b\" --x 'y z' \\\n",
            b"no section\n[open\n=\n",
        ];
        crate::replay::corpus("aws_file", &seeds, 5000, |input| outcome_of(&String::from_utf8_lossy(input)));
    }

    /// Checks that a file is parsed, or that the error contains the number of one of its lines. Returns a summary of the results.
    fn outcome_of(text: &str) -> String {
        let file = match parse(text) {
            Ok(file) => format!("{file:?}").replace('"', " "),
            Err(malformed) => {
                assert!((1..=text.split(['\n', '\r']).count()).contains(&malformed.line), "{text:?}");
                format!("{malformed:?}")
            }
        };
        // The content of the file does not matter for the summary, only the structure.
        let file: String = file.chars().filter(|c| c.is_ascii_uppercase() || "{}[]".contains(*c)).collect();
        let depth = file.chars().map(|c| if c.is_ascii_uppercase() { c } else { 'x' }).take(24).collect::<String>();
        format!("{depth}|{}|{}", words(text).is_some(), nested(text, "key").is_some())
    }
}
