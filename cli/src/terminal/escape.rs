//! Escape sequences at the beginning of a line, like those of ssh (SHELL-8).

/// Finds escape sequences in the input. A sequence may be split between two reads.
#[derive(Debug)]
pub(crate) struct Escapes {
    enabled: bool,
    at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Within a line.
    Line,
    /// At the beginning of a line.
    Beginning,
    /// After a tilde at the beginning of a line. The tilde is held back.
    Tilde,
}

/// The result of processing input.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Typed {
    /// The bytes to send.
    pub(crate) bytes: Vec<u8>,
    /// Whether `~.` was typed, which ends the session.
    pub(crate) end: bool,
    /// Whether `~?` was typed, which shows the help.
    pub(crate) help: bool,
}

/// The text of `~?`, for a raw terminal.
pub(crate) const HELP: &str = "\r\nSupported escape sequences:\r\n ~.  - end the session\r\n ~-  - ignore further escape sequences\r\n ~?  - this message\r\n ~~  - send the tilde\r\n(Escapes are recognized only right after the beginning of a line.)\r\n";

impl Escapes {
    /// Creates a filter. `enabled` is for input from a keyboard; other input is passed on unchanged.
    pub(crate) fn new(enabled: bool) -> Self {
        Self { enabled, at: At::Beginning }
    }

    /// Processes input. The input after `~.` is dropped.
    pub(crate) fn feed(&mut self, input: &[u8]) -> Typed {
        let mut typed = Typed::default();
        for &byte in input {
            if !self.enabled {
                typed.bytes.push(byte);
                continue;
            }
            match (self.at, byte) {
                (At::Beginning, b'~') => {
                    self.at = At::Tilde;
                    continue;
                }
                (At::Tilde, b'.') => {
                    typed.end = true;
                    return typed;
                }
                (At::Tilde, b'?') => {
                    typed.help = true;
                    self.at = At::Beginning;
                    continue;
                }
                (At::Tilde, b'-') => {
                    self.enabled = false;
                    continue;
                }
                (At::Tilde, b'~') => typed.bytes.push(b'~'),
                (At::Tilde, _) => typed.bytes.extend([b'~', byte]),
                _ => typed.bytes.push(byte),
            }
            self.at = if matches!(byte, b'\r' | b'\n') { At::Beginning } else { At::Line };
        }
        typed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the result, and checks that it does not depend on how the input is split.
    fn typed(text: &str) -> (String, bool, bool) {
        let whole = run(&[text.as_bytes()]);
        for cut in 0..=text.len() {
            let (a, b) = text.as_bytes().split_at(cut);
            assert_eq!(run(&[a, b]), whole, "{text:?} cut at {cut}");
        }
        whole
    }

    fn run(pieces: &[&[u8]]) -> (String, bool, bool) {
        let mut escapes = Escapes::new(true);
        let mut bytes = Vec::new();
        let (mut end, mut help) = (false, false);
        for piece in pieces {
            let typed = escapes.feed(piece);
            bytes.extend(typed.bytes);
            end |= typed.end;
            help |= typed.help;
            if end {
                break;
            }
        }
        (String::from_utf8(bytes).unwrap(), end, help)
    }

    #[test]
    fn escapes_are_those_of_the_contract() {
        assert_eq!(typed("ls\r~."), ("ls\r".into(), true, false));
        assert_eq!(typed("~?x"), ("x".into(), false, true));
        assert_eq!(typed("~~x"), ("~x".into(), false, false));
        assert_eq!(typed("~x"), ("~x".into(), false, false));
        assert_eq!(typed("~-~.\r~."), ("~.\r~.".into(), false, false));
        assert_eq!(typed("a~."), ("a~.".into(), false, false));
        assert_eq!(typed("\n~\r~."), ("\n~\r".into(), true, false));
    }

    #[test]
    fn piped_input_has_no_escapes() {
        let typed = Escapes::new(false).feed(b"~.\n~.");
        assert_eq!(typed, Typed { bytes: b"~.\n~.".to_vec(), ..Typed::default() });
    }
}
