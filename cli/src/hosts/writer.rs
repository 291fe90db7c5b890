//! The process that writes to `/etc/hosts` as root. It is this program, started through sudo where needed.
//!
//! The process reads from its standard input which entries the file has to contain. At the end of the input, it removes the
//! entries. The input ends in whatever way the process at its other end ends.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::process::{Command, Stdio};

use nix::sys::signal::{SigSet, Signal};

use super::block::{self, Owner};
use super::{Name, as_name};
use crate::exit_code::{ExitCode, Failure};

/// The first argument of the writing process.
pub(super) const WORD: &str = "__hosts";
/// The second argument of the process that stays in the background.
const STAYS: &str = "stays";

pub(super) const HOSTS: &str = "/etc/hosts";
/// The beginning of the writing process's error messages.
pub(super) const PREFIX: &str = "error: /etc/hosts: ";

/// Longest line of standard input, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// Runs as the writing process if the arguments request it; `None` otherwise.
pub(crate) fn become_writer() -> Option<Result<(), Failure>> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != WORD {
        return None;
    }
    let done = if arguments.next().is_some_and(|word| word == STAYS) { stay() } else { start() };
    Some(done.map_err(|error| Failure::new(ExitCode::Config, "hosts", format!("{HOSTS}: {error}"))))
}

/// Starts the process that stays in the background. Returns as soon as that process has left the terminal, so that sudo ends too.
/// Otherwise sudo would keep the terminal and pass signals on.
fn start() -> io::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    let mut child = command.args([WORD, STAYS]).stderr(Stdio::piped()).spawn()?;
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut said)?;
    }
    if said.is_empty() { Ok(()) } else { Err(io::Error::other(said.trim().trim_start_matches(PREFIX).to_owned())) }
}

/// Runs as the process that stays in the background.
fn stay() -> io::Result<()> {
    rustix::process::setsid()?;
    // Only the end of the input ends this process. The process at the other end may continue after a signal that both receive, or
    // may not receive it.
    SigSet::from_iter([Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM]).thread_block()?;
    let own = this_process()?;
    // Also removes the entries of processes that were killed.
    write(own, &[])?;
    // The end of standard error signals to `start` that the process has begun. The descriptor is replaced, not closed: a file
    // opened later would get its number.
    rustix::stdio::dup2_stderr(File::open("/dev/null")?)?;
    answer(&Ok(()))?;
    let mut input = BufReader::new(io::stdin());
    let mut line = String::new();
    while input.by_ref().take(MAX_LINE).read_line(&mut line).is_ok_and(|length| length > 0) {
        let written = read(&line).and_then(|names| write(own, &names));
        if answer(&written.map_err(|error| error.to_string())).is_err() {
            break;
        }
        line.clear();
    }
    write(own, &[])
}

/// Writes the result of a request to standard output, as one line.
fn answer(written: &Result<(), String>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", serde_json::to_string(written)?)?;
    stdout.flush()
}

/// Parses the names in a line of standard input. They are checked again, because this process is root and the sender is not.
fn read(line: &str) -> io::Result<Vec<Name>> {
    let names: Vec<Name> = serde_json::from_str(line)?;
    match names.iter().find(|name| as_name(&name.name).as_ref() != Some(&name.name)) {
        Some(name) => Err(io::Error::other(format!("{:?} is not a valid name", name.name))),
        None => Ok(names),
    }
}

/// Updates `/etc/hosts` so that it contains these names for `own`, and nothing of processes that have ended.
fn write(own: Owner, names: &[Name]) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(HOSTS)?;
    file.lock()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let updated = block::updated(&text, own, names, is_alive).map_err(io::Error::other)?;
    replace(&mut file, text.as_bytes(), updated.as_bytes())
}

/// Writes the file in place, because it may be a mount, as in containers, and so that it keeps its owner and labels. Only the part
/// after the first difference is written, so that the text before it is never missing.
fn replace(file: &mut File, before: &[u8], after: &[u8]) -> io::Result<()> {
    let same = before.iter().zip(after).take_while(|(before, after)| before == after).count();
    if before.len() == after.len() && same == after.len() {
        return Ok(());
    }
    file.seek(SeekFrom::Start(same as u64))?;
    file.write_all(after.get(same..).unwrap_or_default())?;
    file.set_len(after.len() as u64)?;
    file.sync_all()
}

fn this_process() -> io::Result<Owner> {
    let pid = std::process::id();
    let started = started(pid).ok_or_else(|| io::Error::other("/proc has no start time of this process"))?;
    Ok(Owner { pid, started })
}

fn is_alive(owner: Owner) -> bool {
    started(owner.pid) == Some(owner.started)
}

/// Returns when a process started, in clock ticks since the start of the system. `None` if there is no such process, or if it has
/// ended and its parent has not collected it.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The process's name may contain any character. After it, the third field is the state, and the 22nd the start time.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let has_ended = matches!(fields.next()?, "Z" | "X");
    fields.nth(22 - 4).filter(|_| !has_ended)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_the_file_is_written_again() {
        let mut file = tempfile::tempfile().unwrap();
        for (before, after) in
            [("", "one\n"), ("one\n", "one\ntwo\n"), ("one\ntwo\n", "one\nthree\n"), ("one\nthree\n", "one\n")]
        {
            replace(&mut file, before.as_bytes(), after.as_bytes()).unwrap();
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, after);
        }
    }

    #[test]
    fn a_process_is_alive_until_its_number_is_anothers() {
        let own = this_process().unwrap();
        assert!(is_alive(own));
        assert!(!is_alive(Owner { started: own.started + 1, ..own }));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        assert_eq!(read("[{\"address\":\"127.64.0.1\",\"name\":\"a.example\"}]\n").unwrap().len(), 1);
        for text in
            ["{}", "[{\"address\":\"127.64.0.1\",\"name\":\"a\\n10.0.0.1 b\"}]", "[{\"address\":\"x\",\"name\":\"a\"}]"]
        {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
