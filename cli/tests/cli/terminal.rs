//! Runs the real binary on a pseudoterminal. The test types the keys and reads the screen.

use std::io::{Read, Write};
use std::process::Child;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Instant;

use pty_process::Size;
use pty_process::blocking::{Command, Pty, open};
use rustix::termios::{Termios, tcgetattr};
use tempfile::TempDir;

use crate::common::{PATIENCE, eventually};

/// The output so far, and a condition variable that is notified when more output arrives.
type Screen = Arc<(Mutex<Vec<u8>>, Condvar)>;

/// A process on its own pseudoterminal. Dropping this value kills the process.
pub(crate) struct Terminal {
    pty: Arc<Pty>,
    /// Keeps the terminal open after the process has ended.
    _pts: std::os::fd::OwnedFd,
    child: Child,
    screen: Screen,
    /// Length of the part of the screen that was already matched.
    seen: usize,
    cooked: Termios,
    _home: TempDir,
}

impl Terminal {
    /// Starts the binary.
    pub(crate) fn start(args: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::start_program(env!("CARGO_BIN_EXE_aws-ssm-forward"), args, variables)
    }

    /// Starts another program, on a screen of 101 columns and 33 rows.
    pub(crate) fn start_program(program: &str, args: &[&str], variables: &[(&str, &str)]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let (pty, pts) = open().unwrap();
        pty.resize(Size::new(33, 101)).unwrap();
        let kept = std::os::fd::AsFd::as_fd(&pts).try_clone_to_owned().unwrap();
        let cooked = tcgetattr(&pty).unwrap();
        let command = Command::new(program)
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", home.path())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .envs(variables.iter().copied())
            .current_dir(home.path());
        let child = command.spawn(pts).unwrap();
        let (pty, screen) = (Arc::new(pty), Screen::default());
        let (from, to) = (pty.clone(), screen.clone());
        thread::spawn(move || watch(&from, &to));
        Self { pty, _pts: kept, child, screen, seen: 0, cooked, _home: home }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn type_in(&self, keys: impl AsRef<[u8]>) {
        (&*self.pty).write_all(keys.as_ref()).unwrap();
    }

    /// Waits until `text` is shown after the previous match. Returns the text between the two matches.
    #[track_caller]
    pub(crate) fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let (shown, more) = &*self.screen;
        let mut shown = shown.lock().unwrap();
        loop {
            let new = &shown[self.seen..];
            if let Some(at) = new.windows(text.len()).position(|window| window == text.as_bytes()) {
                let before = String::from_utf8_lossy(&new[..at]).into_owned();
                self.seen += at + text.len();
                return before;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {text:?} in {:?}", String::from_utf8_lossy(new));
            shown = more.wait_timeout(shown, left).unwrap().0;
        }
    }

    /// Waits until the remote shell is ready.
    #[track_caller]
    pub(crate) fn expect_shell(&mut self) {
        self.type_in("PS1=; echo re''ady\r");
        self.expect("ready\r\n");
    }

    /// Returns all output so far.
    pub(crate) fn screen(&self) -> Vec<u8> {
        self.screen.0.lock().unwrap().clone()
    }

    pub(crate) fn resize(&self, rows: u16, cols: u16) {
        self.pty.resize(Size::new(rows, cols)).unwrap();
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = std::process::Command::new("kill").args(["-s", name, &self.pid().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Waits until the process has ended, and asserts that the terminal's settings are restored. Returns the exit code.
    #[track_caller]
    pub(crate) fn end(mut self) -> i32 {
        let mut status = None;
        eventually("the end of the process", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        self.assert_given_back();
        status.unwrap().code().expect("ended by a signal")
    }

    pub(crate) fn is_as_it_was(&self) -> bool {
        let modes =
            |termios: &Termios| (termios.input_modes, termios.output_modes, termios.control_modes, termios.local_modes);
        modes(&tcgetattr(&*self.pty).unwrap()) == modes(&self.cooked)
    }

    #[track_caller]
    fn assert_given_back(&self) {
        assert!(self.is_as_it_was(), "{:?} became {:?}", self.cooked, tcgetattr(&*self.pty));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn watch(pty: &Pty, screen: &Screen) {
    let mut buffer = [0; 1 << 16];
    let mut pty = pty;
    while let Ok(length @ 1..) = pty.read(&mut buffer) {
        screen.0.lock().unwrap().extend_from_slice(&buffer[..length]);
        screen.1.notify_all();
    }
}
