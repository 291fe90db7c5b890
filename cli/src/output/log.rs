//! The last lines of output of a process, for other processes that request them.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::broadcast;

use super::json::timestamp;

/// Number of lines that are kept.
const LINES: usize = 1000;

/// The last lines, and a channel for new lines.
#[derive(Debug)]
pub(crate) struct Log {
    lines: Mutex<VecDeque<String>>,
    new_lines: broadcast::Sender<String>,
}

impl Default for Log {
    fn default() -> Self {
        Self { lines: Mutex::default(), new_lines: broadcast::Sender::new(LINES) }
    }
}

impl Log {
    /// Adds a line, preceded by the time.
    pub(super) fn push(&self, line: &str) {
        let line = format!("{} {line}", timestamp(SystemTime::now()));
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(line.clone());
        // Sent under the lock, so that a reader gets every line exactly once.
        let _ = self.new_lines.send(line);
    }

    /// Returns the last lines, and a receiver for the lines after them.
    pub(crate) fn read(&self) -> (Vec<String>, broadcast::Receiver<String>) {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        (lines.iter().cloned().collect(), self.new_lines.subscribe())
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
        let (lines, mut new_lines) = log.read();
        assert_eq!(lines.len(), LINES);
        assert!(lines[0].ends_with("Z a: line 2"), "{}", lines[0]);
        log.push("warning: b: x");
        let line = new_lines.try_recv().unwrap();
        assert!(line.ends_with("Z warning: b: x") && new_lines.try_recv().is_err());
        assert!(names_one_of(&line, &["b".into()]) && !names_one_of(&line, &["x".into()]));
        assert!(names_one_of(&lines[0], &["b".into(), "a".into()]));
    }
}
