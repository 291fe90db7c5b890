//! The last lines of a process that others may ask for.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::broadcast;

use super::json::timestamp;

/// So many lines are kept.
const LINES: usize = 1000;

/// The last lines, and those to come.
#[derive(Debug)]
pub(crate) struct Log {
    lines: Mutex<VecDeque<String>>,
    news: broadcast::Sender<String>,
}

impl Default for Log {
    fn default() -> Self {
        Self { lines: Mutex::default(), news: broadcast::Sender::new(LINES) }
    }
}

impl Log {
    /// Adds a line, with the time in front.
    pub(super) fn push(&self, line: &str) {
        let line = format!("{} {line}", timestamp(SystemTime::now()));
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(line.clone());
        // Under the lock, so that nobody gets a line twice or not at all.
        let _ = self.news.send(line);
    }

    /// The last lines, and those that come after them.
    pub(crate) fn read(&self) -> (Vec<String>, broadcast::Receiver<String>) {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        (lines.iter().cloned().collect(), self.news.subscribe())
    }
}

/// Whether a line is about one of these tunnels.
pub(crate) fn names_one_of(line: &str, names: &[String]) -> bool {
    let line = line.split_once(' ').map_or(line, |(_, line)| line);
    line.split(": ").take(2).any(|part| names.iter().any(|name| name == part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_those_to_come_are_told_once() {
        let log = Log::default();
        (0..LINES + 2).for_each(|number| log.push(&format!("a: line {number}")));
        let (lines, mut news) = log.read();
        assert_eq!(lines.len(), LINES);
        assert!(lines[0].ends_with("Z a: line 2"), "{}", lines[0]);
        log.push("warning: b: x");
        let line = news.try_recv().unwrap();
        assert!(line.ends_with("Z warning: b: x") && news.try_recv().is_err());
        assert!(names_one_of(&line, &["b".into()]) && !names_one_of(&line, &["x".into()]));
        assert!(names_one_of(&lines[0], &["b".into(), "a".into()]));
    }
}
