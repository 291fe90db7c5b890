//! Reads one configuration file: its tables, with the positions of all keys and values.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use ssm_forward::{ServiceSpec, TargetSpec};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::keys::{self, Key, Shape, Value};
use super::problem::{Author, Place, Problem, Source};
use crate::suggestion;

/// A key with its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: &'static Key,
    pub(super) key_place: Place,
    /// The value, in which variables are not replaced yet.
    pub(super) value: Value,
    pub(super) place: Place,
}

/// The entries of a table, by key.
pub(super) type Entries = BTreeMap<&'static str, Entry>;

/// A table `[tunnels.NAME]`.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// The position of the tunnel's name.
    pub(super) place: Place,
    pub(super) entries: Entries,
}

/// The contents of a file.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) defaults: Entries,
    pub(super) tunnels: BTreeMap<String, Table>,
    /// The included paths as they are written, with their positions.
    pub(super) includes: Vec<(PathBuf, Place)>,
}

/// Reads a file. Errors are added to `problems`.
pub(super) fn read(source: Arc<Source>, problems: &mut Vec<Problem>) -> File {
    let (table, errors) = DeTable::parse_recoverable(&source.text);
    let mut reader = Reader { source: source.clone(), problems };
    for error in errors {
        let place = reader.place(error.span().unwrap_or_default());
        reader.problems.push(Problem::new(error.message().trim(), &place, ""));
    }
    reader.file(table.get_ref())
}

struct Reader<'a> {
    source: Arc<Source>,
    problems: &'a mut Vec<Problem>,
}

type Keyed<'a, 'i> = (&'a Spanned<DeString<'i>>, &'a Spanned<DeValue<'i>>);

impl Reader<'_> {
    fn place(&self, span: Range<usize>) -> Place {
        Place { source: self.source.clone(), span }
    }

    fn file(&mut self, table: &DeTable<'_>) -> File {
        let mut file = File::default();
        for (key, value) in table {
            match (&**key.get_ref(), value.get_ref()) {
                ("defaults", DeValue::Table(table)) => file.defaults = self.entries(table, true),
                ("tunnels", DeValue::Table(table)) => {
                    file.tunnels = table.iter().filter_map(|keyed| self.tunnel(keyed)).collect();
                }
                ("include", value) => file.includes = self.includes(value),
                ("defaults" | "tunnels", _) => {
                    let place = self.place(value.span());
                    self.problems.push(Problem::new(format!("`{}` is not a table", key.get_ref()), &place, ""));
                }
                (name, _) => {
                    let place = self.place(key.span());
                    let mut problem = Problem::new(format!("unknown key `{name}`"), &place, "");
                    if let Some(meant) = suggestion::nearest(name, ["defaults", "tunnels", "include"]) {
                        problem = problem.help(format!("did you mean `{meant}`?"));
                    } else if keys::key(name).is_some() {
                        problem = problem.help(
                            "the keys of one tunnel belong in [tunnels.NAME], those of all tunnels in [defaults]",
                        );
                    }
                    self.problems.push(problem);
                }
            }
        }
        file
    }

    fn includes(&mut self, value: &DeValue<'_>) -> Vec<(PathBuf, Place)> {
        let DeValue::Array(items) = value else {
            let place = self.place(0..0);
            self.problems.push(Problem::new("`include` is not an array of paths", &place, ""));
            return Vec::new();
        };
        let mut includes = Vec::new();
        for item in items {
            let place = self.place(item.span());
            match item.get_ref() {
                DeValue::String(path) => includes.push((PathBuf::from(&**path), place)),
                _ => self.problems.push(Problem::new("expected the path of a file", &place, "")),
            }
        }
        includes
    }

    fn tunnel(&mut self, (name, value): Keyed<'_, '_>) -> Option<(String, Table)> {
        let place = self.place(name.span());
        let name = name.get_ref().to_string();
        if let Err(why) = check_name(&name) {
            self.problems.push(Problem::new(format!("`{name}` cannot be the name of a tunnel"), &place, why));
        }
        let DeValue::Table(table) = value.get_ref() else {
            let problem = Problem::new(format!("the tunnel `{name}` is not a table"), &self.place(value.span()), "");
            self.problems.push(problem.help(format!("write [tunnels.{name}] and its keys below")));
            return None;
        };
        Some((name, Table { place, entries: self.entries(table, false) }))
    }

    fn entries(&mut self, table: &DeTable<'_>, are_defaults: bool) -> Entries {
        table.iter().filter_map(|keyed| self.entry(keyed, are_defaults)).collect()
    }

    fn entry(&mut self, (name, value): Keyed<'_, '_>, is_default: bool) -> Option<(&'static str, Entry)> {
        let key_place = self.place(name.span());
        let name = &**name.get_ref();
        let Some(key) = keys::key(name) else {
            let problem = Problem::new(format!("unknown key `{name}`"), &key_place, "");
            self.problems.push(match keys::suggestion(name) {
                Some(meant) => problem.help(format!("did you mean `{meant}`?")),
                None => problem.help("docs/tunnels.md lists the keys; `config schema` prints them for an editor"),
            });
            return None;
        };
        if is_default && !key.may_be_default {
            let problem = Problem::new(format!("`{name}` cannot be a default"), &key_place, "");
            self.problems.push(problem.help("write it into the tunnel: [tunnels.NAME]"));
        }
        if !key.is_allowed_in_project && matches!(self.source.author, Author::Project(_)) {
            let problem = Problem::new(format!("`{name}` is not allowed in a project's file"), &key_place, "");
            self.problems.push(
                problem.help("put it into a table of the same name in your own file; `config path` prints its path"),
            );
        }
        let place = self.place(value.span());
        match shaped(key.shape, value.get_ref()) {
            Some(value) => Some((key.name, Entry { key, key_place, value, place })),
            None => {
                self.problems.push(Problem::new(format!("wrong type for `{name}`"), &place, key.shape.expected()));
                None
            }
        }
    }
}

/// Returns the value, if it has this shape.
fn shaped(shape: Shape, value: &DeValue<'_>) -> Option<Value> {
    let text = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        _ => None,
    };
    Some(match (shape, value) {
        (Shape::Flag, DeValue::Boolean(value)) => Value::Flag(*value),
        (Shape::Many, DeValue::Array(items)) => {
            Value::Texts(items.iter().map(|item| text(item.get_ref())).collect::<Option<_>>()?)
        }
        (Shape::Pairs, DeValue::Table(table)) => {
            let pairs = table.iter().map(|(key, value)| {
                let value = match value.get_ref() {
                    DeValue::Boolean(value) => Some(value.to_string()),
                    value => text(value),
                };
                Some(format!("{}={}", key.get_ref(), value?))
            });
            Value::Texts(pairs.collect::<Option<_>>()?)
        }
        (Shape::One | Shape::Many, value) => Value::Texts(vec![text(value)?]),
        _ => return None,
    })
}

/// Checks the name of a tunnel. It must not look like another argument that is allowed in its place on the command line.
pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.starts_with('-') || !name.bytes().all(is_word) {
        return Err("expected letters, digits, `-`, `_` and `.`, and no `-` at the beginning");
    }
    let is_other = ServiceSpec::of_text(name).is_some() || !matches!(name.parse(), Ok(TargetSpec::Name(_)));
    if is_other { Err("it looks like a managed node or a service") } else { Ok(()) }
}
