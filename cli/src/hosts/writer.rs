//! The process that writes to `/etc/hosts`, as root. It is this program, started through sudo where needed. Its standard input
//! says which entries there are to be; when it ends, in whatever way the other process ended, the entries are removed.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::process::{Command, Stdio};

use nix::sys::signal::{SigSet, Signal};

use super::block::{self, Owner};
use super::{Name, as_name};
use crate::exit_code::{ExitCode, Failure};

/// The first argument of such a process.
pub(super) const WORD: &str = "__hosts";
/// The second one of the process that stays.
const STAYS: &str = "stays";

pub(super) const HOSTS: &str = "/etc/hosts";
/// How such a process tells a failure.
pub(super) const PREFIX: &str = "error: /etc/hosts: ";

/// Longest line of standard input, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// If this process was started to write: does so.
pub(crate) fn become_writer() -> Option<Result<(), Failure>> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != WORD {
        return None;
    }
    let done = if arguments.next().is_some_and(|word| word == STAYS) { stay() } else { start() };
    Some(done.map_err(|error| Failure::new(ExitCode::Config, "hosts", format!("{HOSTS}: {error}"))))
}

/// Starts the process that stays, and ends as soon as that one has left the terminal. So sudo ends too, which would otherwise
/// keep the terminal, and would pass signals on.
fn start() -> io::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    let mut child = command.args([WORD, STAYS]).stderr(Stdio::piped()).spawn()?;
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut said)?;
    }
    if said.is_empty() { Ok(()) } else { Err(io::Error::other(said.trim().trim_start_matches(PREFIX).to_owned())) }
}

fn stay() -> io::Result<()> {
    rustix::process::setsid()?;
    // The end of its input is what ends it: the other process may go on after a signal, or get none.
    SigSet::from_iter([Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM]).thread_block()?;
    let own = this_process()?;
    // Also removes what processes left that were killed.
    write(own, &[])?;
    // The end of standard error tells that it has begun. What is opened next takes its number.
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

/// Says on standard output, in a line, whether the entries are written.
fn answer(written: &Result<(), String>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", serde_json::to_string(written)?)?;
    stdout.flush()
}

/// The names in a line of standard input. They are checked again: this process is root, and the other one is not.
fn read(line: &str) -> io::Result<Vec<Name>> {
    let names: Vec<Name> = serde_json::from_str(line)?;
    match names.iter().find(|name| as_name(&name.name).as_ref() != Some(&name.name)) {
        Some(name) => Err(io::Error::other(format!("{:?} is no name", name.name))),
        None => Ok(names),
    }
}

/// Has `/etc/hosts` contain these names for a process, and nothing of dead ones.
fn write(own: Owner, names: &[Name]) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(HOSTS)?;
    file.lock()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let updated = block::updated(&text, own, names, is_alive).map_err(io::Error::other)?;
    replace(&mut file, text.as_bytes(), updated.as_bytes())
}

/// In place: the file may be a mount, as in containers, and keeps its owner and labels. What comes first stays as it is at any
/// moment, because only the end differs.
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
    let started = started(pid).ok_or_else(|| io::Error::other("/proc does not tell when this process started"))?;
    Ok(Owner { pid, started })
}

fn is_alive(owner: Owner) -> bool {
    started(owner.pid) == Some(owner.started)
}

/// When a process started, in clock ticks since the system started. `None` if there is no such process, or it has ended and its
/// parent does not look.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain anything. Behind it, the third field is the state, and the 22nd the time.
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
