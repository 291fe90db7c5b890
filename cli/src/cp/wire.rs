//! Decodes the output of the scripts on the node.
//!
//! The agent's filter for UTF-8 (SHELL-1) damages EF BF BD. Therefore EF is always escaped: EF 01 is the byte EF itself, and EF
//! with another code structures the output.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

const LEAD: u8 = 0xef;
const LITERAL: u8 = 1;
/// The end of a piece. The newline before the code does not belong to the data: some versions of sed end every line with a newline.
const PIECE: u8 = 2;
/// A line of text.
const LINE: u8 = 3;
/// The end of the output.
const END: u8 = 4;
/// A line with the name of a tool that the node lacks.
const MISSING: u8 = 5;

/// Maximum size of a line, and of the kept text before the mark, in bytes.
const MAX_LINE: usize = 4096;

/// A decoded part of a script's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Data of a piece.
    Data(Bytes),
    /// The end of a piece.
    PieceEnd,
    /// A line of text.
    Line(String),
    /// The name of a tool that the node lacks.
    Missing(String),
    /// The end of the output.
    End,
}

/// Decoder of a script's output, which can be cut into parts at any byte.
#[derive(Debug)]
pub(super) struct Decoder {
    mark: Vec<u8>,
    state: WireState,
    /// Whether a newline was held back, because it may be the one before the end of a piece.
    newline: bool,
    events: VecDeque<Event>,
}

#[derive(Debug)]
enum WireState {
    /// Before the mark. Contains the text that was received instead.
    Waiting(Vec<u8>),
    Data,
    Lead,
    Line(u8, Vec<u8>),
    Ended,
    Invalid,
}

impl Decoder {
    /// Creates a decoder for output that begins with `mark`.
    pub(super) fn new(mark: &str) -> Self {
        Self { mark: mark.into(), state: WireState::Waiting(Vec::new()), newline: false, events: VecDeque::new() }
    }

    /// Returns the next event.
    pub(super) fn next(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether the output contained something that no script sends.
    pub(super) fn is_invalid(&self) -> bool {
        matches!(self.state, WireState::Invalid)
    }

    /// Returns the text that was received instead of the mark, with white space reduced to single spaces.
    pub(super) fn noise(&self) -> String {
        match &self.state {
            WireState::Waiting(noise) => {
                String::from_utf8_lossy(noise).split_whitespace().collect::<Vec<_>>().join(" ")
            }
            _ => String::new(),
        }
    }

    /// Decodes the next part of the output.
    pub(super) fn feed(&mut self, mut bytes: Bytes) {
        while let Some(&first) = bytes.first() {
            match &mut self.state {
                WireState::Waiting(noise) => {
                    noise.push(first);
                    bytes.advance(1);
                    if noise.ends_with(&self.mark) {
                        self.state = WireState::Data;
                    } else if noise.len() > MAX_LINE {
                        drop(noise.drain(..MAX_LINE / 2));
                    }
                }
                WireState::Data if first == LEAD => {
                    bytes.advance(1);
                    self.state = WireState::Lead;
                }
                WireState::Data => {
                    let length = bytes.iter().position(|byte| *byte == LEAD).unwrap_or(bytes.len());
                    self.data(bytes.split_to(length));
                }
                WireState::Lead => {
                    bytes.advance(1);
                    self.state = self.follow(first);
                }
                WireState::Line(_, line) if first != b'\n' => {
                    line.push(first);
                    bytes.advance(1);
                    if line.len() > MAX_LINE {
                        self.state = WireState::Invalid;
                    }
                }
                WireState::Line(code, line) => {
                    let (code, line) = (*code, String::from_utf8_lossy(line).into_owned());
                    bytes.advance(1);
                    self.state = WireState::Data;
                    self.events.push_back(if code == MISSING { Event::Missing(line) } else { Event::Line(line) });
                }
                WireState::Ended | WireState::Invalid => return,
            }
        }
    }

    /// Handles the code after EF.
    fn follow(&mut self, code: u8) -> WireState {
        match code {
            LITERAL => {
                self.release_newline();
                self.events.push_back(Event::Data(Bytes::from_static(&[LEAD])));
            }
            PIECE => {
                self.newline = false;
                self.events.push_back(Event::PieceEnd);
            }
            LINE | MISSING => return WireState::Line(code, Vec::new()),
            END => {
                self.events.push_back(Event::End);
                return WireState::Ended;
            }
            _ => return WireState::Invalid,
        }
        WireState::Data
    }

    fn data(&mut self, mut data: Bytes) {
        self.release_newline();
        if data.ends_with(b"\n") {
            data.truncate(data.len() - 1);
            self.newline = true;
        }
        if !data.is_empty() {
            self.events.push_back(Event::Data(data));
        }
    }

    fn release_newline(&mut self) {
        if std::mem::take(&mut self.newline) {
            self.events.push_back(Event::Data(Bytes::from_static(b"\n")));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::process::{Command, Stdio};

    use super::super::script;
    use super::*;

    /// Decodes `output` in parts of `size` bytes. Joins the data of each piece.
    fn decoded(output: &[u8], size: usize) -> (Vec<Event>, Decoder) {
        let mut decoder = Decoder::new("MARK");
        let mut events: Vec<Event> = Vec::new();
        for part in output.chunks(size) {
            decoder.feed(Bytes::copy_from_slice(part));
            while let Some(event) = decoder.next() {
                match (events.last_mut(), event) {
                    (Some(Event::Data(before)), Event::Data(more)) => *before = [&before[..], &more].concat().into(),
                    (_, event) => events.push(event),
                }
            }
        }
        (events, decoder)
    }

    /// Returns the shells that this machine has.
    fn shells() -> Vec<Vec<&'static str>> {
        let all = [vec!["sh"], vec!["bash"], vec!["busybox", "sh"]];
        let works = |shell: &Vec<&str>| {
            Command::new(shell[0])
                .args(&shell[1..])
                .args(["-c", "exit 0"])
                .status()
                .is_ok_and(|status| status.success())
        };
        all.into_iter().filter(works).collect()
    }

    /// Runs `words` with `shell` in place of the first word.
    fn run(shell: &[&str], words: &[String]) -> Vec<u8> {
        let mut command = Command::new(shell[0]);
        command.args(&shell[1..]).args(&words[1..]).stdin(Stdio::null());
        command.output().unwrap().stdout
    }

    #[test]
    fn bytes_and_digests_come_through_every_shell_wherever_they_are_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(OsStr::from_bytes(b"-a b\n'\"\\\xef\xbf\xbd\n"));
        let content = b"text\n\n\xc3\xa4\xef\xbf\xbd\xef\xbd\xbfx\xef\xef\x01\x00\ntail \xef\xbf";
        std::fs::write(&path, content).unwrap();
        let name = script::word(path.as_os_str().as_bytes());
        assert!(name.is_ascii());
        let operation = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let operations =
            [operation(&["g", &name, "0", "2"]), operation(&["c", &name]), operation(&["p", &name, "0", "1"])];
        let digest = Event::Line(super::super::digest::of_bytes(content));
        let data = || Event::Data(Bytes::from_static(content));
        let expected =
            [data(), Event::PieceEnd, Event::PieceEnd, data(), Event::PieceEnd, digest.clone(), digest, Event::End];
        for shell in shells() {
            let output = run(&shell, &script::send("MARK", operations.concat()));
            assert!(!output.windows(2).any(|pair| pair == b"\xef\xbf"), "{shell:?} {output:?}");
            for size in 1..=output.len() {
                let (events, decoder) = decoded(&output, size);
                assert_eq!(events, expected, "{shell:?} {size}");
                assert!(!decoder.is_invalid());
            }
        }
    }

    #[test]
    fn a_tool_that_is_missing_is_named() {
        let words = script::send("MARK", vec!["h".into(), "./x".into()]);
        let output = Command::new("/bin/sh").args(&words[1..]).env("PATH", "/nowhere").output().unwrap();
        let (events, _) = decoded(&output.stdout, 3);
        assert_eq!(events, [Event::Missing("sed".into()), Event::End], "{output:?}");
    }

    #[test]
    fn what_no_script_says_is_refused() {
        let (events, decoder) = decoded(b"noise MARKx\xef\x07y", 4);
        assert_eq!((events, decoder.is_invalid()), (vec![Event::Data(Bytes::from_static(b"x"))], true));
        let (events, decoder) = decoded(&[&b"MARK\xef\x03"[..], &[b'x'; 5000]].concat(), 100);
        assert_eq!((events, decoder.is_invalid()), (vec![], true));
        let (_, decoder) = decoded(b"sh: not found\n", 100);
        assert_eq!(decoder.noise(), "sh: not found");
        let (_, mut decoder) = decoded(&[b'x'; 100_000], 1000);
        assert!(decoder.noise().len() <= MAX_LINE, "{}", decoder.noise().len());
        decoder.feed(Bytes::from_static(b"MARKx"));
        assert_eq!(decoder.next(), Some(Event::Data(Bytes::from_static(b"x"))));
    }

    #[test]
    fn scripts_suit_a_session_document() {
        let all = [
            script::receive("MARK"),
            script::send("MARK", vec![]).join(" "),
            script::list("MARK", "RECORD", true, [].into_iter()).join(" "),
        ];
        for script in all {
            assert!(!script.contains('\n') && !script.contains("{{") && !script.contains("}}"), "{script}");
        }
    }
}
