//! Errors in configuration files. They are reported like a compiler's errors: the position, the line with a mark below it, and a
//! suggestion.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use crate::exit_code::{ExitCode, Failure};
use crate::untrusted;

/// The text of a file, for excerpts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// The file's path.
    pub(crate) path: PathBuf,
    /// The whole text.
    pub(crate) text: String,
    /// The file's author.
    pub(crate) author: Author,
}

/// The author of a file, which decides what the file may contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Author {
    /// The user.
    User,
    /// The author of the project in this folder.
    Project(PathBuf),
}

/// A position in a file.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The file.
    pub(crate) source: Arc<Source>,
    /// The range in the text, in bytes.
    pub(crate) span: Range<usize>,
}

impl Place {
    /// Returns the line number, starting at 1.
    pub(crate) fn line(&self) -> usize {
        let before = self.source.text.as_bytes().get(..self.span.start).unwrap_or_default();
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

/// One error.
#[derive(Debug)]
pub(crate) struct Problem {
    title: String,
    /// The positions, each with a text; the first one is the main position.
    places: Vec<(Place, String)>,
    help: Option<String>,
}

impl Problem {
    /// Creates an error at a position. `label` is written next to the mark.
    pub(crate) fn new(title: impl Into<String>, place: &Place, label: impl Into<String>) -> Self {
        Self { title: title.into(), places: vec![(place.clone(), label.into())], help: None }
    }

    /// Adds another position.
    pub(crate) fn and(mut self, place: &Place, label: impl Into<String>) -> Self {
        self.places.push((place.clone(), label.into()));
        self
    }

    /// Adds a suggestion.
    pub(crate) fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    /// Returns the position, by which errors are sorted.
    pub(crate) fn position(&self) -> (PathBuf, usize) {
        self.places.first().map(|(place, _)| (place.source.path.clone(), place.span.start)).unwrap_or_default()
    }

    /// Returns the error in one line, with the file and the line number.
    pub(crate) fn one_line(&self) -> String {
        let place = self.places.first().map(|(place, _)| place);
        let place =
            place.map_or_else(String::new, |place| format!("{}:{}: ", place.source.path.display(), place.line()));
        let help = self.help.as_ref().map_or_else(String::new, |help| format!("; {help}"));
        format!("{place}{}{help}", self.title)
    }

    /// Returns the error in one line, without the position.
    pub(crate) fn without_position(&self) -> String {
        let label = self.places.first().map(|(_, label)| label.as_str()).filter(|label| !label.is_empty());
        let parts: Vec<_> = [Some(self.title.as_str()), label, self.help.as_deref()].into_iter().flatten().collect();
        untrusted::line(&parts.join("; "))
    }

    /// Returns the error in several lines, with excerpts of the file.
    pub(crate) fn render(&self, level: &Level<'_>) -> String {
        let paths: Vec<_> = self.places.iter().map(|(place, _)| place.source.path.display().to_string()).collect();
        let mut group = Group::with_title(level.clone().primary_title(&self.title));
        for (index, ((place, label), path)) in self.places.iter().zip(&paths).enumerate() {
            let kind = if index == 0 { AnnotationKind::Primary } else { AnnotationKind::Context };
            let annotation = kind.span(place.span.clone());
            let annotation = if label.is_empty() { annotation } else { annotation.label(label) };
            group = group.element(Snippet::source(&place.source.text).path(path).annotation(annotation));
        }
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help));
        }
        let text = Renderer::plain().render(&[group]);
        text.lines().map(untrusted::line).collect::<Vec<_>>().join("\n")
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        failure(&[problem])
    }
}

/// Returns all problems as one failure. `problems` must not be empty.
pub(crate) fn failure(problems: &[Problem]) -> Failure {
    let mut excerpt = String::new();
    for (index, problem) in problems.iter().enumerate() {
        let separator = if index == 0 { "" } else { "\n\n" };
        let _ = write!(excerpt, "{separator}{}", problem.render(&Level::ERROR));
    }
    let lines: Vec<_> = problems.iter().map(Problem::one_line).collect();
    let excerpt = excerpt.strip_prefix("error: ").unwrap_or(&excerpt).to_owned();
    Failure::new(ExitCode::Config, "configuration", lines.join("; ")).with_excerpt(excerpt)
}
