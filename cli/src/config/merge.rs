//! Merges the files: first the user's own file and the files that it includes, then the project's. If both define a tunnel, the
//! user's keys take precedence.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file::{self, Entries, Entry, File, Table};
use super::keys::Value;
use super::problem::{Author, Place, Problem, Source, failure};
use super::{Config, places};
use crate::exit_code::{ExitCode, Failure};

/// The reason why a project's file is refused.
const WRITABLE_BY_OTHERS: &str = "is refused: another user owns it or its folder, or has permission to write there";

/// The definition of a tunnel, merged from all files.
#[derive(Debug)]
pub(super) struct Definition {
    /// The position of the tunnel's name.
    pub(super) place: Place,
    /// The entries, including the defaults.
    pub(super) entries: Entries,
}

impl Definition {
    /// Returns the tunnel's destination, as it is written.
    pub(super) fn remote(&self) -> Option<&str> {
        match &self.entries.get("remote")?.value {
            Value::Texts(texts) => texts.first().map(String::as_str),
            Value::Flag(_) => None,
        }
    }

    /// Returns the tunnel's groups.
    pub(super) fn groups(&self) -> impl Iterator<Item = &str> {
        let groups = self.entries.get("groups").map(|entry| &entry.value);
        let names = groups.and_then(|value| match value {
            Value::Texts(names) => Some(names),
            Value::Flag(_) => None,
        });
        names.into_iter().flatten().map(String::as_str)
    }
}

/// Reads and merges the files. `only` replaces the other files.
///
/// # Errors
/// Returns all problems of all files.
pub(super) fn load(only: Option<&Path>, user: Option<&Path>, folder: Option<&Path>) -> Result<Config, Failure> {
    let mut loader = Loader::default();
    let mut own = Layer::default();
    match (only, user) {
        (Some(path), _) => loader.file(path, Author::User, &mut own)?,
        (None, Some(path)) if path.exists() => loader.file(path, Author::User, &mut own)?,
        _ => {}
    }
    let mut project = Layer::default();
    let of_project = folder.filter(|_| only.is_none()).and_then(places::project_file);
    if let Some(path) = of_project.filter(|path| !loader.files.contains(path)) {
        if places::is_writable_by_others(&path).map_err(|error| unreadable(&path, &error))? {
            let text = format!("{} {WRITABLE_BY_OTHERS}; if you trust the file, pass it with --config", path.display());
            return Err(Failure::new(ExitCode::Config, "configuration", text));
        }
        let root = path.parent().unwrap_or_else(|| Path::new("/")).to_owned();
        loader.file(&path, Author::Project(root), &mut project)?;
    }
    let tunnels = merge(own, project);
    loader.check_groups(&tunnels);
    let Loader { files, mut problems } = loader;
    if problems.is_empty() {
        return Ok(Config { files, tunnels });
    }
    problems.sort_by_key(Problem::position);
    Err(failure(&problems))
}

/// Checks the text of one file alone, as if the file existed at `path`.
///
/// # Errors
/// Returns the first error of the file, for a user who is entering its contents.
pub(super) fn check_text(path: &Path, text: String, author: Author) -> Result<(), String> {
    let (mut loader, mut layer) = (Loader::default(), Layer::default());
    loader.text(path, text, author, &mut layer);
    let tunnels = merge(layer, Layer::default());
    loader.check_groups(&tunnels);
    for (name, definition) in &tunnels {
        definition.resolve(name, &[], &mut loader.problems).map_err(|failure| failure.message)?;
    }
    loader.problems.sort_by_key(Problem::position);
    loader.problems.first().map_or(Ok(()), |problem| Err(problem.without_position()))
}

/// The contents of one author's files.
#[derive(Default)]
struct Layer {
    defaults: Entries,
    tunnels: BTreeMap<String, Table>,
}

#[derive(Default)]
struct Loader {
    files: Vec<PathBuf>,
    problems: Vec<Problem>,
}

impl Loader {
    /// Adds a file and the files that it includes.
    fn file(&mut self, path: &Path, author: Author, layer: &mut Layer) -> Result<(), Failure> {
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
        self.text(path, text, author, layer);
        Ok(())
    }

    fn text(&mut self, path: &Path, text: String, author: Author, layer: &mut Layer) {
        self.files.push(path.to_owned());
        let source = Arc::new(Source { path: path.to_owned(), text, author: author.clone() });
        let File { defaults, tunnels, includes } = file::read(source, &mut self.problems);
        for entry in defaults.into_values() {
            match layer.defaults.get(entry.key.name) {
                Some(other) => {
                    self.duplicate(&format!("the default `{}`", entry.key.name), &entry.key_place, &other.key_place)
                }
                None => drop(layer.defaults.insert(entry.key.name, entry)),
            }
        }
        for (name, table) in tunnels {
            match layer.tunnels.get(&name) {
                Some(other) => self.duplicate(&format!("the tunnel `{name}`"), &table.place, &other.place),
                None => drop(layer.tunnels.insert(name, table)),
            }
        }
        for (include, place) in includes {
            if let Err(problem) = self.include(path, &include, &place, &author, layer) {
                self.problems.push(problem);
            }
        }
    }

    fn include(
        &mut self,
        from: &Path,
        include: &Path,
        place: &Place,
        author: &Author,
        layer: &mut Layer,
    ) -> Result<(), Problem> {
        let cannot =
            |error: &io::Error| Problem::new(format!("cannot include {}: {error}", include.display()), place, "");
        let include = match (include.strip_prefix("~"), places::home()) {
            (Ok(rest), Some(home)) => home.join(rest),
            _ => include.to_owned(),
        };
        let folder = from.parent().unwrap_or_else(|| Path::new("/"));
        let path = folder.join(include).canonicalize().map_err(|error| cannot(&error))?;
        if let Author::Project(root) = author {
            let root = root.canonicalize().map_err(|error| cannot(&error))?;
            if !path.starts_with(&root) {
                let problem = Problem::new("a project's file can include only files in its own folder", place, "");
                return Err(problem.help(format!("the folder is {}", root.display())));
            }
            if places::is_writable_by_others(&path).map_err(|error| cannot(&error))? {
                return Err(Problem::new(format!("{} {WRITABLE_BY_OTHERS}", path.display()), place, ""));
            }
        }
        if self.files.iter().any(|file| file.canonicalize().is_ok_and(|file| file == path)) {
            return Err(Problem::new(format!("{} is included twice", path.display()), place, ""));
        }
        let text = std::fs::read_to_string(&path).map_err(|error| cannot(&error))?;
        self.text(&path, text, author.clone(), layer);
        Ok(())
    }

    fn duplicate(&mut self, what: &str, again: &Place, first: &Place) {
        let problem = Problem::new(format!("{what} is defined twice"), again, "again here");
        self.problems.push(problem.and(first, "first here"));
    }

    /// Checks that no name is both a tunnel and a group.
    fn check_groups(&mut self, tunnels: &BTreeMap<String, Definition>) {
        for definition in tunnels.values() {
            for group in definition.groups() {
                if let (Some(other), Some(entry)) = (tunnels.get(group), definition.entries.get("groups")) {
                    let problem = Problem::new(format!("`{group}` is a group and a tunnel"), &entry.place, "the group");
                    self.problems.push(problem.and(&other.place, "the tunnel").help("give one of them another name"));
                }
            }
        }
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(ExitCode::Config, "configuration", format!("cannot read {}: {error}", path.display()))
}

/// Merges the contents. Precedence: the user's table, the project's table, the project's defaults, the user's defaults.
fn merge(own: Layer, project: Layer) -> BTreeMap<String, Definition> {
    let mut tunnels = BTreeMap::new();
    let Layer { defaults, tunnels: own_tables } = own;
    for (name, table) in project.tunnels {
        let mut entries = defaults.clone();
        entries.extend(project.defaults.iter().map(|(key, entry): (_, &Entry)| (*key, entry.clone())));
        entries.extend(table.entries);
        tunnels.insert(name, Definition { place: table.place, entries });
    }
    for (name, table) in own_tables {
        let definition =
            tunnels.entry(name).or_insert_with(|| Definition { place: table.place.clone(), entries: defaults.clone() });
        definition.place = table.place;
        definition.entries.extend(table.entries);
    }
    tunnels
}
