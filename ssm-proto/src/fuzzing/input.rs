//! Converts the fuzzer's bytes to numbers, durations and data.

use std::time::Duration;

use bytes::Bytes;

/// Bytes from this value on begin a length of two bytes.
const LONG: u8 = 224;

/// Removes values from the front of the fuzzer's input. When the input is used up, numbers are 0.
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(super) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// Returns a number below `limit`, which is at most 256.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit.max(1)
    }

    pub(super) fn pick<T: Copy>(&mut self, values: &[T]) -> Option<T> {
        let at = self.below(values.len());
        values.get(at).copied()
    }

    /// Returns a duration from 1 ms to 64 s; half of the values are below 300 ms.
    pub(super) fn time(&mut self) -> Duration {
        let byte = self.byte();
        Duration::from_millis((u64::from(byte & 15) + 1) << (byte >> 4).min(12))
    }

    /// Returns up to 8191 bytes. Their length precedes them in the input, in one byte up to 223, otherwise in two.
    pub(super) fn bytes(&mut self) -> Bytes {
        let length = match self.byte() {
            short @ 0..LONG => usize::from(short),
            long => usize::from(long - LONG) << 8 | usize::from(self.byte()),
        };
        let (bytes, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        Bytes::copy_from_slice(bytes)
    }
}
