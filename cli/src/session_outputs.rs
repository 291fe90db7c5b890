//! Writes a session's outputs to the outputs of this process, and decodes escaped outputs.

use bytes::Bytes;
use ssm_forward::Output;

use crate::exact_output::{Decoder, Verdict};
use crate::exit_code::Failure;
use crate::writer::Writer;

/// Standard output and standard error, each with a decoder if it is escaped.
#[derive(Debug)]
pub(crate) struct SessionOutputs {
    stdout: Sink,
    stderr: Sink,
    /// Buffer for decoded data, kept to avoid allocations.
    decoded: Vec<(Output, Bytes)>,
    /// Buffer for one batch of writes, kept to avoid allocations.
    batch: Vec<Bytes>,
}

#[derive(Debug)]
struct Sink {
    writer: Writer,
    decoder: Option<Decoder>,
}

impl SessionOutputs {
    /// Creates outputs without decoders.
    ///
    /// # Errors
    /// Returns an error if the process has no file descriptor left.
    pub(crate) fn plain() -> Result<Self, Failure> {
        let sink = |writer| Sink { writer, decoder: None };
        let (stdout, stderr) = (sink(Writer::stdout()?), sink(Writer::stderr()?));
        Ok(Self { stdout, stderr, decoded: Vec::new(), batch: Vec::new() })
    }

    /// Returns the outputs that go to a program or a file, where every byte matters.
    pub(crate) fn not_terminals(&self) -> Vec<Output> {
        let both = [(Output::Stdout, &self.stdout), (Output::Stderr, &self.stderr)];
        both.into_iter().filter(|(_, sink)| !sink.writer.is_terminal()).map(|(output, _)| output).collect()
    }

    /// Sets which outputs arrive escaped, after `mark`.
    pub(crate) fn expect_escaped(&mut self, mark: &str, outputs: &[Output]) {
        for (output, sink) in [(Output::Stdout, &mut self.stdout), (Output::Stderr, &mut self.stderr)] {
            sink.decoder = outputs.contains(&output).then(|| Decoder::new(mark, output));
        }
    }

    /// Sets that both outputs arrive on standard output, escaped by the script for terminals.
    pub(crate) fn expect_terminal(&mut self, mark: &str) {
        self.stdout.decoder = Some(Decoder::new(mark, Output::Stdout));
    }

    /// Returns the decoder of standard output, if this output is escaped.
    pub(crate) fn decoder(&self) -> Option<&Decoder> {
        self.stdout.decoder.as_ref()
    }

    /// Returns for each escaped output whether it arrived completely.
    pub(crate) fn verdicts(&self) -> impl Iterator<Item = Verdict> {
        [&self.stdout, &self.stderr].into_iter().filter_map(|sink| sink.decoder.as_ref()).map(Decoder::verdict)
    }

    /// Writes received data. `pieces` is empty afterwards.
    ///
    /// # Errors
    /// Returns an error if an output cannot be written.
    pub(crate) async fn show(&mut self, pieces: &mut Vec<(Output, Bytes)>) -> Result<(), Failure> {
        for (output, bytes) in pieces.drain(..) {
            match &mut if output == Output::Stderr { &mut self.stderr } else { &mut self.stdout }.decoder {
                Some(decoder) => decoder.feed(bytes, &mut self.decoded),
                None => self.decoded.push((output, bytes)),
            }
        }
        let mut decoded = std::mem::take(&mut self.decoded);
        for run in decoded.chunk_by(|(one, _), (other, _)| one == other) {
            let Some((output, _)) = run.first() else { continue };
            self.batch.extend(run.iter().map(|(_, bytes)| bytes.clone()));
            let sink = if *output == Output::Stderr { &mut self.stderr } else { &mut self.stdout };
            sink.writer.write(&mut self.batch).await?;
        }
        decoded.clear();
        self.decoded = decoded;
        Ok(())
    }
}
