//! Transfers the output of commands byte for byte.
//!
//! The official agent passes a command's output through a UTF-8 filter. The filter keeps only one byte of each U+FFFD (EF BF
//! BD), and drops an incomplete character at the end (SHELL-1). Therefore a script on the node escapes the output in such a
//! way that EF is never followed by BF, and appends the number of bytes of the output (SHELL-10).
//!
//! The escaping runs in separate processes. The command itself replaces the shell that started these processes (`exec`), so
//! that its exit code and its signals are reported unchanged.

use bytes::{Buf, Bytes};
use ssm_forward::Output;

/// The first byte of every code.
const LEAD: u8 = 0xef;
/// Second byte of the code for a literal [`LEAD`] in the output.
const LITERAL: u8 = 1;
/// Second byte of the end of a piece. The newline before this code does not belong to the output: some versions of sed end
/// every line with a newline.
const PIECE: u8 = 2;
/// Second byte of the end of an output. The output's length in bytes and a newline follow.
const END: u8 = 3;
/// Second byte of the beginning of a piece of standard output, if both outputs share a terminal.
const STDOUT: u8 = 4;
/// Second byte of the beginning of a piece of standard error, if both outputs share a terminal.
const STDERR: u8 = 5;
/// Second byte of the command's exit code. The exit code and a newline follow.
const CODE: u8 = 6;
/// As [`CODE`], but other bytes than the mark followed the command's input.
const CODE_OF_DAMAGED: u8 = 7;
/// Second byte of the request to send the mark after the command's input. Full stops and a newline follow, because the agent's
/// filter holds an incomplete character back until more output follows.
const ASK: u8 = 8;

/// Returns a random text that does not occur in any output by chance.
pub(crate) fn mark() -> String {
    format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}

/// The common part of both scripts: sets the sed expression that escapes (`$r`) and creates a folder with two pipes (`$d`).
const PREPARE: &str = r#"type sed dd mkfifo >/dev/null 2>&1&&r=$(printf 's/\357/\357\001/g')&&d=$(mktemp -d 2>/dev/null)&&mkfifo "$d/1" "$d/2" 2>/dev/null"#;

/// Adds the size of a piece to the sum in `$n`. `$b` contains dd's report. Some versions of dd do not report the size; then `?`
/// is sent instead of the sum.
const COUNT: &str = r#"b=${b##*out?};b=${b%% *};case $n$b in *[!0-9]*)n=?;;*)n=$((n+b));;esac;"#;

/// Returns the words of a command line that runs `command` and escapes its `outputs`. Each of these outputs begins with `mark`
/// and `1`, or with `mark` and `0` if the node lacks the required programs.
pub(crate) fn wrap(mark: &str, outputs: &[Output], command: &[String]) -> Vec<String> {
    // Each piece is the result of one read, so that data is never held back until more arrives. The escaping processes run in
    // the background, so they ignore Ctrl-C. They end when the last program that holds the output open ends. They are started
    // from subshells, so that the command has no children that it did not start itself.
    let mut script = format!(
        r#"x(){{
printf %s1 {mark} >&4;
n=0;
while b=$({{ {{ dd bs=65536 count=1 2>&3;echo;}}|sed "$r" >&4;}} 3>&1);do
case $b in 0+0*)printf '\357\003%s\n' "$n" >&4;break;;esac;
printf '\357\002' >&4;
{COUNT}
done;
}};
{PREPARE}||{{ rm -rf "$d";"#
    );
    let fds = || outputs.iter().map(|output| if *output == Output::Stderr { 2 } else { 1 });
    fds().for_each(|fd| script += &format!("printf %s0 {mark} >&{fd};"));
    script += "exec \"$@\";};\n";
    fds().for_each(|fd| {
        script += &format!("(export LC_ALL=C;x <\"$d/{fd}\" 4>&{fd} >/dev/null 2>&1 &);\n");
    });
    script += "exec";
    fds().for_each(|fd| script += &format!(" {}>\"$d/{fd}\"", fd + 4));
    script += ";\nrm -r \"$d\";\nexec \"$@\"";
    fds().for_each(|fd| script += &format!(" {fd}>&{} {}>&-", fd + 4, fd + 4));
    ["sh", "-c", &one_line(&script), "sh"]
        .iter()
        .map(|word| (*word).to_owned())
        .chain(command.iter().cloned())
        .collect()
}

/// Returns the line for the shell of a terminal that runs `command`, a quoted command line. The command's standard input is
/// the `length` bytes that the terminal receives after it has printed `mark` and `1`. The command's outputs are escaped piece by
/// piece as they arrive. The exit code follows, also as an escape code.
///
/// If all of the input was read, the script finally asks for the mark. If it receives other bytes, the agent has processed a
/// message with a part of the input twice (AGENT-8), and these bytes are the rest of the input.
pub(crate) fn wrap_on_terminal(mark: &str, length: usize, command: &str) -> String {
    // Both outputs share the terminal. The newline in the third pipe is a token: a loop stores its piece in a file until it has
    // read the token, writes the piece, and returns the token. Pipes and files are unlinked before the command starts, so that
    // they never remain on the node.
    let script = format!(
        r#"stty raw -echo -isig -opost;
x(){{
export LC_ALL=C;
n=0;
while b=$(dd bs=65536 count=1 of=/proc/self/fd/$1 2>&1);do
echo >>/proc/self/fd/$1;
read t <&7;
printf "\357\\00$2";
sed "$r" </proc/self/fd/$1||break;
case $b in 0+0*)printf '\357\003%s\n' "$n";echo >&7;break;;esac;
printf '\357\002';
echo >&7;
{COUNT}
done;
}};
{PREPARE}&&mkfifo "$d/7"||{{ rm -rf "$d";echo "the node lacks sed, dd, mkfifo, mktemp or a place for temporary files";exit;}};
exec 4>"$d/4" 7<>"$d/7" 8>"$d/8" 9>"$d/9";
echo >&7;
x 8 4 <"$d/1" &
x 9 5 <"$d/2" &
exec 5>"$d/1" 6>"$d/2";
rm -r "$d";
printf %s1 {mark};
{{ head -c {length}&&echo >&4;}}|"#
    );
    let marked = mark.len();
    let end = format!(
        r#" >&5 2>&6 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-;
c=$? i=6;
exec 5>&- 6>&-;
wait;
if [ -s /proc/self/fd/4 ];then printf '\357\010....\n';[ "$(head -c {marked})" = {mark} ]||i=7;fi;
printf "\357\00$i%s\n" $c"#
    );
    format!("{}{command}{}", one_line(&script), one_line(&end))
}

/// Joins the lines of a script, because a session document may reject a command with several lines.
fn one_line(script: &str) -> String {
    script.replace('\n', " ")
}

/// Decodes an escaped output. The result does not depend on how the output is split.
#[derive(Debug)]
pub(crate) struct Decoder {
    mark: Vec<u8>,
    state: DecoderState,
    /// The output to which the next bytes belong.
    output: Output,
    /// Whether a received newline is held back. It belongs to the output unless the end of a piece follows.
    newline: bool,
    totals: [Total; 2],
    code: Option<i64>,
    asks_for_mark: bool,
    is_input_damaged: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum DecoderState {
    /// Before the mark. Contains the bytes received so far.
    Waiting(Vec<u8>),
    /// The node lacks the programs to escape, so the output is not decoded.
    Plain,
    /// In escaped output, outside of a code.
    Text,
    /// After the first byte of a code.
    Lead,
    /// In the number or the text after a code. Contains the code and the characters received so far.
    Number(u8, Vec<u8>),
    /// After a sequence that the script never writes.
    Wrong,
}

/// The length of one output.
#[derive(Debug, Default)]
struct Total {
    /// Number of bytes received.
    received: u64,
    /// Whether the end of the output was received.
    ended: bool,
    /// Number of bytes sent, if the node reported it.
    sent: Option<u64>,
}

/// Whether an output arrived completely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The output is complete and unchanged.
    Complete,
    /// The output was not escaped, so the agent's filter may have changed it.
    Plain,
    /// The script did not start. Contains the text that arrived instead.
    NotBegun(String),
    /// Bytes are missing or were changed.
    Broken,
}

/// Maximum number of bytes kept of the text before the mark.
const MAX_NOISE: usize = 4096;

impl Decoder {
    /// Creates a decoder for an output that begins with `mark`.
    pub(crate) fn new(mark: &str, output: Output) -> Self {
        Self {
            mark: mark.into(),
            state: DecoderState::Waiting(Vec::new()),
            output,
            newline: false,
            totals: Default::default(),
            code: None,
            asks_for_mark: false,
            is_input_damaged: false,
        }
    }

    /// Whether the mark has arrived.
    pub(crate) fn has_begun(&self) -> bool {
        !matches!(self.state, DecoderState::Waiting(_))
    }

    /// Returns the exit code, once it has arrived as part of the output.
    pub(crate) fn code(&self) -> Option<i64> {
        self.code
    }

    /// Whether the script waits for the mark after the command's input.
    pub(crate) fn asks_for_mark(&self) -> bool {
        self.asks_for_mark
    }

    /// Whether the command's input did not arrive as it was sent. Known together with the exit code.
    pub(crate) fn is_input_damaged(&self) -> bool {
        self.is_input_damaged
    }

    /// Returns whether the output arrived completely.
    pub(crate) fn verdict(&self) -> Verdict {
        let complete = |total: &Total| total.ended && total.sent.is_none_or(|sent| sent == total.received);
        let all_or_nothing = |total: &Total| complete(total) || (total.received == 0 && !total.ended);
        match &self.state {
            DecoderState::Waiting(noise) => {
                let text = String::from_utf8_lossy(noise);
                Verdict::NotBegun(text.split_whitespace().collect::<Vec<_>>().join(" "))
            }
            DecoderState::Plain => Verdict::Plain,
            DecoderState::Text if complete(self.total(self.output)) && self.totals.iter().all(all_or_nothing) => {
                Verdict::Complete
            }
            _ => Verdict::Broken,
        }
    }

    /// Decodes received bytes and appends the command's bytes to `to`.
    pub(crate) fn feed(&mut self, mut bytes: Bytes, to: &mut Vec<(Output, Bytes)>) {
        while let Some(&first) = bytes.first() {
            match &mut self.state {
                DecoderState::Waiting(noise) => {
                    noise.push(first);
                    bytes.advance(1);
                    self.look_for_mark();
                }
                DecoderState::Plain => to.push((self.output, std::mem::take(&mut bytes))),
                DecoderState::Text if first == LEAD => {
                    self.state = DecoderState::Lead;
                    bytes.advance(1);
                }
                DecoderState::Text => {
                    let length = bytes.iter().position(|byte| *byte == LEAD).unwrap_or(bytes.len());
                    self.text(bytes.split_to(length), to);
                }
                DecoderState::Lead => {
                    bytes.advance(1);
                    self.state = self.second_byte(first, to);
                }
                DecoderState::Number(_, digits) if first != b'\n' && digits.len() < 20 => {
                    digits.push(first);
                    bytes.advance(1);
                }
                DecoderState::Number(code, digits) => {
                    let (code, digits) = (*code, std::mem::take(digits));
                    bytes.advance(1);
                    self.state = self.number(code, &digits);
                }
                DecoderState::Wrong => return,
            }
        }
    }

    fn look_for_mark(&mut self) {
        let DecoderState::Waiting(noise) = &mut self.state else { return };
        let Some((kind, text)) = noise.split_last() else { return };
        match kind {
            b'0' if text.ends_with(&self.mark) => self.state = DecoderState::Plain,
            b'1' if text.ends_with(&self.mark) => self.state = DecoderState::Text,
            _ if noise.len() > MAX_NOISE => drop(noise.drain(..MAX_NOISE / 2)),
            _ => {}
        }
    }

    fn text(&mut self, mut text: Bytes, to: &mut Vec<(Output, Bytes)>) {
        self.release_newline(to);
        if text.ends_with(b"\n") {
            text.truncate(text.len() - 1);
            self.newline = true;
        }
        self.emit(text, to);
    }

    /// Handles the second byte of a code and returns the next state.
    fn second_byte(&mut self, byte: u8, to: &mut Vec<(Output, Bytes)>) -> DecoderState {
        match byte {
            LITERAL => {
                self.release_newline(to);
                self.emit(Bytes::from_static(&[LEAD]), to);
            }
            PIECE => self.newline = false,
            STDOUT => self.output = Output::Stdout,
            STDERR => self.output = Output::Stderr,
            END | CODE | CODE_OF_DAMAGED | ASK => {
                self.newline = false;
                return DecoderState::Number(byte, Vec::new());
            }
            _ => return DecoderState::Wrong,
        }
        DecoderState::Text
    }

    fn number(&mut self, code: u8, digits: &[u8]) -> DecoderState {
        let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<u64>().ok());
        match (code, number) {
            (CODE | CODE_OF_DAMAGED, Some(number)) => {
                (self.code, self.is_input_damaged) = (number.try_into().ok(), code == CODE_OF_DAMAGED);
            }
            (ASK, _) => self.asks_for_mark = true,
            (END, _) if number.is_some() || digits == b"?" => {
                let output = self.output;
                let total = self.total_mut(output);
                (total.ended, total.sent) = (true, number);
            }
            _ => return DecoderState::Wrong,
        }
        DecoderState::Text
    }

    fn release_newline(&mut self, to: &mut Vec<(Output, Bytes)>) {
        if std::mem::take(&mut self.newline) {
            self.emit(Bytes::from_static(b"\n"), to);
        }
    }

    fn emit(&mut self, bytes: Bytes, to: &mut Vec<(Output, Bytes)>) {
        if !bytes.is_empty() {
            let output = self.output;
            self.total_mut(output).received += bytes.len() as u64;
            to.push((output, bytes));
        }
    }

    fn total(&self, output: Output) -> &Total {
        let [stdout, stderr] = &self.totals;
        if output == Output::Stderr { stderr } else { stdout }
    }

    fn total_mut(&mut self, output: Output) -> &mut Total {
        let [stdout, stderr] = &mut self.totals;
        if output == Output::Stderr { stderr } else { stdout }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn joined(pieces: &[(Output, Bytes)], wanted: Output) -> Vec<u8> {
        pieces.iter().filter(|(output, _)| *output == wanted).flat_map(|(_, bytes)| bytes.to_vec()).collect()
    }

    /// Returns the decoded output if it arrives in pieces of this size.
    fn decoded(escaped: &[u8], size: usize) -> (Vec<(Output, Bytes)>, Decoder) {
        let (mut decoder, mut pieces) = (Decoder::new("MARK", Output::Stdout), Vec::new());
        escaped.chunks(size).for_each(|chunk| decoder.feed(Bytes::copy_from_slice(chunk), &mut pieces));
        (pieces, decoder)
    }

    fn run(words: &[String]) -> std::process::Output {
        let (program, arguments) = words.split_first().unwrap();
        Command::new(program).args(arguments).output().unwrap()
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn any_bytes_come_back_wherever_they_are_cut() {
        let command = r"printf 'text\n\nä\357\277\275\357\275\277x\357\357\001\000\n'; printf 'tail \357\277'";
        let output = run(&wrap("MARK", &[Output::Stdout, Output::Stderr], &words(&["sh", "-c", command])));
        let expected = b"text\n\n\xc3\xa4\xef\xbf\xbd\xef\xbd\xbfx\xef\xef\x01\x00\ntail \xef\xbf";
        assert!(!output.stdout.windows(2).any(|pair| pair == b"\xef\xbf"), "{:?}", output.stdout);
        for size in 1..=output.stdout.len() {
            let (pieces, decoder) = decoded(&output.stdout, size);
            assert_eq!(joined(&pieces, Output::Stdout), expected, "{size}");
            assert_eq!(decoder.verdict(), Verdict::Complete, "{size}");
        }
        let (pieces, decoder) = decoded(&output.stderr, 7);
        assert_eq!((pieces.len(), decoder.verdict()), (0, Verdict::Complete));
    }

    #[test]
    fn what_is_missing_is_seen() {
        let output = run(&wrap("MARK", &[Output::Stdout], &words(&["printf", r"one\n\357two\n"]))).stdout;
        for cut in 0..output.len() {
            let (_, decoder) = decoded(&output[..cut], cut.max(1));
            assert_ne!(decoder.verdict(), Verdict::Complete, "{cut}");
        }
        let without = |at: usize| [&output[..at], &output[at + 1..]].concat();
        for (at, removed) in output.iter().enumerate() {
            let (pieces, decoder) = decoded(&without(at), 64);
            let has_all = joined(&pieces, Output::Stdout).len() == b"one\n\xeftwo\n".len();
            assert!(decoder.verdict() != Verdict::Complete || has_all, "{at}: {:?}", *removed as char);
        }
    }

    #[test]
    fn scripts_suit_a_session_document() {
        let scripts =
            [wrap("MARK", &[Output::Stdout, Output::Stderr], &[]).join(" "), wrap_on_terminal("MARK", 1, "x")];
        assert!(!scripts.iter().any(|script| script.contains('\n') || script.contains("{{") || script.contains("}}")));
    }

    #[test]
    fn a_node_without_the_tools_gives_what_it_has() {
        let mut command = wrap("MARK", &[Output::Stdout], &words(&["/bin/echo", "hello"]));
        command[0] = "/bin/sh".into();
        let output = Command::new(&command[0]).args(&command[1..]).env("PATH", "/nowhere").output().unwrap();
        let (pieces, decoder) = decoded(&output.stdout, 3);
        assert_eq!((joined(&pieces, Output::Stdout), decoder.verdict()), (b"hello\n".to_vec(), Verdict::Plain));
        let (_, decoder) = decoded(b"sh: not found", 100);
        assert_eq!(decoder.verdict(), Verdict::NotBegun("sh: not found".into()));
    }

    #[test]
    fn what_comes_before_the_mark_is_kept_to_a_bound() {
        let (_, decoder) = decoded(&[b'x'; 100_000], 1000);
        assert!(matches!(decoder.verdict(), Verdict::NotBegun(text) if (1000..=MAX_NOISE).contains(&text.len())));
        let (pieces, _) = decoded(&[&[b'x'; 100_000][..], b"MARK0hello"].concat(), 1000);
        assert_eq!(joined(&pieces, Output::Stdout), b"hello");
    }

    #[test]
    fn outputs_of_a_terminal_are_taken_apart() {
        let whole = b"noise MARK1\xef\x04out\xef\x01\n\xef\x02\xef\x05er\nr\n\xef\x02\xef\x04\n\xef\x034\n\xef\x05\n\xef\x034\n\xef\x067\n";
        for size in 1..=whole.len() {
            let (pieces, decoder) = decoded(whole, size);
            assert_eq!(joined(&pieces, Output::Stdout), b"out\xef", "{size}");
            assert_eq!(joined(&pieces, Output::Stderr), b"er\nr", "{size}");
            assert_eq!((decoder.code(), decoder.verdict()), (Some(7), Verdict::Complete), "{size}");
        }
    }
}
