//! The progress and the result of a copy for the user: a progress bar while it runs, and a line at its end.

use std::io::{IsTerminal, stderr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::exit_code::Failure;
use crate::{console, untrusted};

/// Progress and failures of a copy.
#[derive(Debug)]
pub(super) struct Report {
    began: Instant,
    quiet: bool,
    /// Bytes to copy.
    total: AtomicU64,
    /// Bytes that are at the destination, including `kept`.
    done: AtomicU64,
    /// Bytes that an earlier attempt had copied.
    kept: AtomicU64,
    /// Complete files.
    files: AtomicU64,
    /// Whether a digest could not be compared, because the node has no tool for digests.
    unverified: AtomicBool,
    /// The digest of the last complete file.
    digest: Mutex<String>,
    failures: Mutex<Vec<Failure>>,
}

impl Report {
    pub(super) fn new(quiet: bool) -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            quiet,
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            files: AtomicU64::new(0),
            unverified: AtomicBool::new(false),
            digest: Mutex::default(),
            failures: Mutex::default(),
        })
    }

    /// Adds bytes to copy.
    pub(super) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds copied bytes.
    pub(super) fn copied(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds bytes that an earlier attempt had copied.
    pub(super) fn kept(&self, bytes: u64) {
        self.kept.fetch_add(bytes, Ordering::Relaxed);
        self.copied(bytes);
    }

    /// Counts a complete file. The digest is `-` if the node has no tool for digests.
    pub(super) fn finished(&self, digest: &str) {
        self.files.fetch_add(1, Ordering::Relaxed);
        match digest {
            "-" => self.unverified.store(true, Ordering::Relaxed),
            digest => digest.clone_into(&mut self.digest.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// Adds the failure of one file. The copy continues with the other files.
    pub(super) fn failed(&self, failure: Failure) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
    }

    /// Shows a progress bar until `copy` is done.
    pub(super) async fn watch<T>(&self, copy: impl Future<Output = T>) -> T {
        if self.quiet || !stderr().is_terminal() {
            return copy.await;
        }
        let bar = ProgressBar::new(0);
        let template = "  {wide_bar:.cyan/dim} {bytes:>10} of {total_bytes}  {bytes_per_sec:>12}  {eta:>4} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        let follow = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(100));
            loop {
                ticks.tick().await;
                bar.set_length(self.total.load(Ordering::Relaxed));
                bar.set_position(self.done.load(Ordering::Relaxed));
            }
        };
        let result = tokio::select! {
            result = copy => result,
            () = follow => unreachable!("the loop never ends"),
        };
        bar.finish_and_clear();
        result
    }

    /// Prints the result. Of several failures, returns the last one and prints the others.
    pub(super) fn end(&self) -> Result<(), Failure> {
        let mut failures = std::mem::take(&mut *self.failures.lock().unwrap_or_else(PoisonError::into_inner));
        let last = failures.pop();
        failures.iter().for_each(|failure| console::note(&format!("error: {failure}")));
        let files = self.files.load(Ordering::Relaxed);
        if !self.quiet && (files > 0 || last.is_none()) {
            console::note(&self.summary(files));
        }
        if !self.quiet && self.unverified.load(Ordering::Relaxed) {
            console::note("warning: the node lacks sha256sum, shasum and openssl: only lengths were compared");
        }
        last.map_or(Ok(()), Err)
    }

    fn summary(&self, files: u64) -> String {
        let (done, kept) = (self.done.load(Ordering::Relaxed), self.kept.load(Ordering::Relaxed));
        let elapsed = self.began.elapsed();
        let moved = done.saturating_sub(kept);
        let rate =
            HumanBytes(moved.saturating_mul(1000) / u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1));
        let seconds = elapsed.as_secs_f64();
        let plural = if files == 1 { "" } else { "s" };
        let mut line = format!("copied {files} file{plural}, {} in {seconds:.1} s ({rate}/s)", HumanBytes(moved));
        if kept > 0 {
            line += &format!(", {} were already present", HumanBytes(kept));
        }
        let digest = self.digest.lock().unwrap_or_else(PoisonError::into_inner);
        match (files, self.unverified.load(Ordering::Relaxed)) {
            (1, false) => line += &format!("; SHA-256 {digest} on both sides"),
            (2.., false) => line += "; SHA-256 of each is the same on both sides",
            _ => {}
        }
        untrusted::line(&line)
    }
}
