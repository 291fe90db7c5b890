//! Checks that every requirement that the workspace cites is defined once in `docs/protocol.md` or `docs/relay.md`, and that every
//! test that SECURITY.md and `docs/reliability.md` name exists.

#![expect(clippy::unwrap_used, reason = "in a test, this is the assertion")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const FAMILIES: [&str; 11] = ["RELAY", "OPEN", "WIRE", "DC", "HS", "MUX", "PORT", "SHELL", "KMS", "PLUGIN", "AGENT"];
/// The folders that contain the workspace's own text. Build output may be beside them.
const FOLDERS: [&str; 9] =
    ["relay", "ssm-proto", "ssm-forward", "ssm-local", "cli", "benches", "fuzz", "docs", "tests"];

#[test]
fn every_cited_requirement_is_defined_once() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let documents = ["docs/protocol.md", "docs/relay.md"].map(|file| std::fs::read_to_string(root.join(file)).unwrap());
    let protocol = documents.concat();
    let definitions = protocol.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    let mut defined = BTreeSet::new();
    for number in definitions.filter(|cell| citations(cell) == [*cell]) {
        assert!(defined.insert(number.to_owned()), "{number} is defined twice");
    }
    for family in FAMILIES {
        let numbers = defined.iter().filter_map(|number| number.strip_prefix(family)?.strip_prefix('-')?.parse().ok());
        let numbers: BTreeSet<usize> = numbers.collect();
        assert!(!numbers.is_empty() && numbers.iter().copied().eq(1..=numbers.len()), "{family} has gaps: {numbers:?}");
    }

    let mut cited: BTreeMap<String, PathBuf> = BTreeMap::new();
    for file in texts(&root) {
        let text = std::fs::read_to_string(&file).unwrap();
        cited.extend(citations(&text).into_iter().map(|number| (number.to_owned(), file.clone())));
    }
    assert!(cited.len() > 40, "the search finds too few citations: {cited:?}");
    let undefined: Vec<_> = cited.iter().filter(|(number, _)| !defined.contains(*number)).collect();
    assert!(undefined.is_empty(), "cited, but not defined: {undefined:?}");
}

/// In these documents, long names in code spans are names of tests, and paths are files of tests.
#[test]
fn every_test_that_a_document_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let sources = texts(&root).into_iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs"));
    let sources: Vec<_> = sources.map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let functions = |text| str::split(text, "fn ").skip(1).filter_map(|rest| rest.split('(').next());
    let functions: BTreeSet<_> = sources.iter().flat_map(|text| functions(text)).collect();
    for document in ["SECURITY.md", "docs/reliability.md"] {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        let quoted = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
        let is_name =
            |word: &&str| word.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let (names, others): (Vec<_>, Vec<_>) = quoted.partition(is_name);
        let tests: BTreeSet<_> = names.into_iter().filter(|name| name.matches('_').count() > 1).collect();
        let missing: Vec<_> = tests.iter().filter(|name| !functions.contains(*name)).collect();
        assert!(tests.len() > 20 && missing.is_empty(), "{document} names tests that do not exist: {missing:?}");
        let paths = others.iter().filter(|word| word.contains("tests/") && !word.contains(' '));
        let lost: Vec<_> = paths.filter(|path| !root.join(path).exists()).collect();
        assert!(lost.is_empty(), "{document} names files that do not exist: {lost:?}");
    }
}

/// Returns the cited numbers in a text, such as the first number of this family: DC-1.
fn citations(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    words.filter(|word| is_number(word)).collect()
}

fn is_number(word: &str) -> bool {
    let Some((family, number)) = word.split_once('-') else { return false };
    FAMILIES.contains(&family) && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns the sources and documents of the workspace.
fn texts(root: &Path) -> Vec<PathBuf> {
    let mut texts = Vec::new();
    let mut folders: Vec<PathBuf> =
        FOLDERS.iter().map(|folder| root.join(folder)).filter(|folder| folder.is_dir()).collect();
    let top = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    texts.extend(top.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("rs" | "md" | "sh" | "toml") => texts.push(path),
                None if path.is_dir() && !path.ends_with("target") && !path.ends_with("corpus") => folders.push(path),
                _ => {}
            }
        }
    }
    texts
}
