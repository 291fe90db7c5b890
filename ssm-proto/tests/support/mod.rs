//! Reads the files in `testdata`.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// Returns a path below `testdata`.
pub(crate) fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

/// Returns all vectors, in the order of the file.
pub(crate) fn vectors() -> Vec<Value> {
    let text = std::fs::read_to_string(testdata("vectors.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Returns the lines of all captures, sorted by name.
pub(crate) fn captures() -> Vec<(String, Vec<Value>)> {
    let files = std::fs::read_dir(testdata("captures")).unwrap().map(|entry| entry.unwrap().path());
    let mut captures: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let lines = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            (path.file_stem().unwrap().to_string_lossy().into_owned(), lines)
        })
        .collect();
    captures.sort_by(|(a, _), (b, _)| a.cmp(b));
    captures
}

/// Returns the bytes in an object's `hex`.
pub(crate) fn bytes_of(value: &Value) -> Vec<u8> {
    unhex(value["hex"].as_str().unwrap())
}

/// Decodes hexadecimal digits.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}
