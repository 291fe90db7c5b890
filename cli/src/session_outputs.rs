//! Writes a session's outputs to those of this process, decoding escaped ones.

use bytes::Bytes;
use ssm_forward::Output;

use crate::exact_output::{Decoder, Verdict};
use crate::exit_code::Failure;
use crate::writer::Writer;

/// Both standard outputs, and the decoder of each.
#[derive(Debug)]
pub(crate) struct SessionOutputs {
    stdout: Sink,
    stderr: Sink,
    /// Decoded data and its buffers.
    decoded: Vec<(Output, Bytes)>,
    batch: Vec<Bytes>,
}

#[derive(Debug)]
struct Sink {
    writer: Writer,
    decoder: Option<Decoder>,
}

impl SessionOutputs {
    /// Without decoding.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub(crate) fn plain() -> Result<Self, Failure> {
        let sink = |writer| Sink { writer, decoder: None };
        let (stdout, stderr) = (sink(Writer::stdout()?), sink(Writer::stderr()?));
        Ok(Self { stdout, stderr, decoded: Vec::new(), batch: Vec::new() })
    }

    /// The outputs that go to a program or a file, where every byte matters.
    pub(crate) fn not_for_a_person(&self) -> Vec<Output> {
        let both = [(Output::Stdout, &self.stdout), (Output::Stderr, &self.stderr)];
        both.into_iter().filter(|(_, sink)| !sink.writer.is_terminal()).map(|(output, _)| output).collect()
    }

    /// From now on these outputs arrive escaped, after `mark`.
    pub(crate) fn expect_escaped(&mut self, mark: &str, outputs: &[Output]) {
        for (output, sink) in [(Output::Stdout, &mut self.stdout), (Output::Stderr, &mut self.stderr)] {
            sink.decoder = outputs.contains(&output).then(|| Decoder::new(mark, output));
        }
    }

    /// From now on both outputs arrive on standard output, as escaped by the script for terminals.
    pub(crate) fn expect_terminal(&mut self, mark: &str) {
        self.stdout.decoder = Some(Decoder::new(mark, Output::Stdout));
    }

    /// The decoder of standard output, if it is escaped.
    pub(crate) fn decoder(&self) -> Option<&Decoder> {
        self.stdout.decoder.as_ref()
    }

    /// How the escaped outputs arrived.
    pub(crate) fn verdicts(&self) -> impl Iterator<Item = Verdict> {
        [&self.stdout, &self.stderr].into_iter().filter_map(|sink| sink.decoder.as_ref()).map(Decoder::verdict)
    }

    /// Writes received data. `pieces` is empty afterwards.
    ///
    /// # Errors
    /// An output cannot be written.
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
