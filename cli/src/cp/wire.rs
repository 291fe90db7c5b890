//! What the scripts on the node say. The agent's filter for UTF-8 (SHELL-1) damages EF BF BD, so that EF never stands alone: EF 01
//! is the byte itself, the other codes structure the output.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

const LEAD: u8 = 0xef;
const LITERAL: u8 = 1;
/// The end of a piece. The newline before it belongs to the script: some versions of sed end every line with one.
const PIECE: u8 = 2;
/// A line of text.
const LINE: u8 = 3;
/// The end of all.
const END: u8 = 4;
/// A tool that the node lacks, as a line.
const MISSING: u8 = 5;

/// No line, and nothing that comes before the mark, is longer.
const MAX_LINE: usize = 4096;

/// What a script said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Bytes of a piece.
    Data(Bytes),
    /// The piece is whole.
    PieceEnd,
    /// A line.
    Line(String),
    /// The node lacks this tool.
    Missing(String),
    /// Everything was said.
    End,
}

/// Undoes the escaping, wherever it is cut.
#[derive(Debug)]
pub(super) struct Decoder {
    mark: Vec<u8>,
    state: WireState,
    newline: bool,
    events: VecDeque<Event>,
}

#[derive(Debug)]
enum WireState {
    /// Before the mark, with what came instead.
    Waiting(Vec<u8>),
    Data,
    Lead,
    Line(u8, Vec<u8>),
    Over,
    Wrong,
}

impl Decoder {
    /// For output that begins with `mark`.
    pub(super) fn new(mark: &str) -> Self {
        Self { mark: mark.into(), state: WireState::Waiting(Vec::new()), newline: false, events: VecDeque::new() }
    }

    /// The next event of what was fed.
    pub(super) fn next(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether something came that no script says.
    pub(super) fn is_wrong(&self) -> bool {
        matches!(self.state, WireState::Wrong)
    }

    /// What came instead of the mark.
    pub(super) fn noise(&self) -> String {
        match &self.state {
            WireState::Waiting(noise) => {
                String::from_utf8_lossy(noise).split_whitespace().collect::<Vec<_>>().join(" ")
            }
            _ => String::new(),
        }
    }

    /// Takes what came.
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
                        self.state = WireState::Wrong;
                    }
                }
                WireState::Line(code, line) => {
                    let (code, line) = (*code, String::from_utf8_lossy(line).into_owned());
                    bytes.advance(1);
                    self.state = WireState::Data;
                    self.events.push_back(if code == MISSING { Event::Missing(line) } else { Event::Line(line) });
                }
                WireState::Over | WireState::Wrong => return,
            }
        }
    }

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
                return WireState::Over;
            }
            _ => return WireState::Wrong,
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

    /// What the events of `output` are, with the data of each piece joined, if it comes in parts of this size.
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

    /// The shells that are on this machine.
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

    /// Runs `words` with another shell in place of the first word.
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
            let output = run(&shell, &script::give("MARK", operations.concat()));
            assert!(!output.windows(2).any(|pair| pair == b"\xef\xbf"), "{shell:?} {output:?}");
            for size in 1..=output.len() {
                let (events, decoder) = decoded(&output, size);
                assert_eq!(events, expected, "{shell:?} {size}");
                assert!(!decoder.is_wrong());
            }
        }
    }

    #[test]
    fn a_tool_that_is_missing_is_named() {
        let words = script::give("MARK", vec!["h".into(), "./x".into()]);
        let output = Command::new("/bin/sh").args(&words[1..]).env("PATH", "/nowhere").output().unwrap();
        let (events, _) = decoded(&output.stdout, 3);
        assert_eq!(events, [Event::Missing("sed".into()), Event::End], "{output:?}");
    }

    #[test]
    fn what_no_script_says_is_refused() {
        let (events, decoder) = decoded(b"noise MARKx\xef\x07y", 4);
        assert_eq!((events, decoder.is_wrong()), (vec![Event::Data(Bytes::from_static(b"x"))], true));
        let (events, decoder) = decoded(&[&b"MARK\xef\x03"[..], &[b'x'; 5000]].concat(), 100);
        assert_eq!((events, decoder.is_wrong()), (vec![], true));
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
            script::take("MARK"),
            script::give("MARK", vec![]).join(" "),
            script::list("MARK", "RECORD", true, [].into_iter()).join(" "),
        ];
        for script in all {
            assert!(!script.contains('\n') && !script.contains("{{") && !script.contains("}}"), "{script}");
        }
    }
}
