//! Fuzzing of private parsers by the unit tests of their crates: the corpus is replayed and varied, and can be extended.
//!
//! A target returns one line that describes the outcome of its input. An input with a new outcome is interesting; outcomes replace the
//! coverage that a fuzzer measures. `fuzz/README.md` describes how to extend a corpus.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fastrand::Rng;
use ssm_proto::fuzzing::vary;

const SEED: u64 = 15;
const LONGEST: usize = 1024;
/// Maximum length of an outcome. The rest of a long text contains no information about the parser.
const OUTCOME: usize = 160;
/// Maximum number of files in a corpus.
const MOST: usize = 150;

/// Runs `body` over a target's corpus and over `variations` variations of it. `body` panics if a property is violated.
///
/// `FUZZ_TIMES` multiplies the number of variations, and `FUZZ_SEED` sets another seed. With `FUZZ_GROW=SECONDS`, inputs with new
/// outcomes are added to the corpus, beginning with `seeds`.
pub(crate) fn corpus(target: &str, seeds: &[&[u8]], variations: u64, body: impl Fn(&[u8]) -> String) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let mut rng = Rng::with_seed(number("FUZZ_SEED").unwrap_or(SEED));
    if let Some(seconds) = number("FUZZ_GROW") {
        return grow(&folder, seeds, Duration::from_secs(seconds), &mut rng, &body);
    }
    let inputs: Vec<_> = read(&folder).into_values().collect();
    assert!(!inputs.is_empty(), "{target} has no corpus");
    inputs.iter().for_each(|input| drop(run(target, input, &body)));
    for _ in 0..variations * number("FUZZ_TIMES").unwrap_or(1) {
        drop(run(target, &variation(&mut rng, &inputs), &body));
    }
}

fn variation(rng: &mut Rng, inputs: &[Vec<u8>]) -> Vec<u8> {
    let (mut input, other) = (rng.choice(inputs).cloned().unwrap_or_default(), rng.choice(inputs));
    vary(rng, &mut input, other.map_or(&[], |other| other), LONGEST);
    input
}

/// Runs a target. Stores an input for which the target panics.
fn run(target: &str, input: &[u8], body: &impl Fn(&[u8]) -> String) -> String {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(input))) {
        Ok(outcome) => outcome,
        Err(panic) => {
            let (mut new, file) = tempfile::Builder::new().prefix(target).tempfile().unwrap().keep().unwrap();
            new.write_all(input).unwrap();
            eprintln!("{target} fails for the input that is stored in {}", file.display());
            std::panic::resume_unwind(panic);
        }
    }
}

fn read(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    files.map(|file| (file.clone(), std::fs::read(&file).unwrap())).collect()
}

/// Replaces the corpus by one short input for each outcome that was found.
fn grow(folder: &Path, seeds: &[&[u8]], time: Duration, rng: &mut Rng, body: &impl Fn(&[u8]) -> String) {
    let old = read(folder);
    let target = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let of = |input: &[u8]| class(&run(&target, input, body));
    let mut inputs: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.to_vec()).chain(old.values().cloned()).collect();
    let mut known: BTreeSet<String> = inputs.iter().map(|input| of(input)).collect();
    let since = Instant::now();
    let mut tried = 0_u64;
    while since.elapsed() < time && known.len() < MOST {
        let input = variation(rng, &inputs);
        tried += 1;
        if known.insert(of(&input)) {
            inputs.push(input);
        }
    }
    let mut shortest = BTreeMap::<String, Vec<u8>>::new();
    for input in inputs {
        let outcome = of(&input);
        let input = shorten(input, |shorter| of(shorter) == outcome);
        let kept = shortest.entry(outcome).or_insert_with(|| input.clone());
        if input.len() < kept.len() {
            *kept = input;
        }
    }
    std::fs::create_dir_all(folder).unwrap();
    old.keys().for_each(|file| std::fs::remove_file(file).unwrap());
    for input in shortest.values() {
        std::fs::write(folder.join(name(input)), input).unwrap();
    }
    eprintln!("{target}: {tried} inputs, {} outcomes", shortest.len());
}

/// Returns an outcome without the parts that are quoted from the input: names, numbers.
fn class(outcome: &str) -> String {
    let mut quote = None;
    let kept = outcome.chars().filter(|c| match quote {
        Some(end) => {
            if *c == end {
                quote = None;
            }
            false
        }
        None => {
            quote = matches!(c, '"' | '`' | '\'').then_some(*c);
            c.is_ascii_alphabetic() || matches!(c, ' ' | '|')
        }
    });
    kept.take(OUTCOME).collect()
}

/// Removes all pieces of the input without which `is_same` still holds.
fn shorten(mut input: Vec<u8>, is_same: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut piece = input.len().div_ceil(2);
    while piece > 0 {
        let mut at = 0;
        while at < input.len() {
            let end = input.len().min(at + piece);
            let shorter = [&input[..at], &input[end..]].concat();
            if is_same(&shorter) {
                input = shorter;
            } else {
                at = end;
            }
        }
        piece /= 2;
    }
    input
}

/// Returns a file name that is derived from the content.
fn name(input: &[u8]) -> String {
    let hash = input
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}
