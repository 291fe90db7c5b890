//! Continues earlier attempts: finds the pieces that the node already has.
use std::collections::BTreeMap;
use std::fs::File as LocalFile;

use tokio::task::spawn_blocking;

use super::{File, Job, UploadState, Work, refused};
use crate::cp::control::{Control, Request};
use crate::cp::digest;
use crate::cp::local::Entry;
use crate::cp::report::Report;
use crate::cp::script::PIECE;
use crate::exit_code::Failure;

/// Opens the partial files of all large files, compares them with the local files, and queues the missing pieces.
pub(super) async fn prepare(control: &mut Control, files: &[File], report: &Report) -> Result<Work, Failure> {
    let mut work = Work { states: files.iter().map(|_| UploadState::default()).collect(), ..Work::default() };
    let is_large = |file: &&File| file.entry.as_ref().is_none_or(|entry| entry.size > PIECE);
    let open = |file: &File| {
        let size = file.entry.as_ref().map_or(0, |entry| entry.size);
        (format!("o {} x {size}", file.part), 1)
    };
    let requests: Vec<Request> = files.iter().filter(is_large).map(open).collect();
    let mut opened = control.ask_all(&requests).await?.into_iter().flatten();
    for (number, file) in files.iter().enumerate() {
        let Some(state) = work.states.get_mut(number) else { continue };
        if !is_large(&file) {
            state.missing = 1;
            work.queue.push_back(Job::Small(number));
            continue;
        }
        match opened.next() {
            Some(Ok(answer)) => {
                state.is_new = answer == "new";
                let Some(entry) = &file.entry else { continue };
                let kept = if state.is_new { BTreeMap::new() } else { kept(control, file, entry).await? };
                report.kept(kept.values().sum());
                let missing = (0..entry.size.div_ceil(PIECE)).filter(|index| !kept.contains_key(index));
                let pieces: Vec<_> = missing.map(|index| Job::Piece { file: number, index }).collect();
                state.missing = pieces.len() as u64;
                if pieces.is_empty() {
                    work.queue.push_back(Job::Finish(number));
                }
                work.queue.extend(pieces);
            }
            answer => {
                state.is_done = true;
                let why = answer.and_then(Result::err).unwrap_or_default();
                report.failed(refused(&file.shown, &why));
            }
        }
    }
    Ok(work)
}

/// Returns the pieces that the node already has, with their lengths.
async fn kept(control: &mut Control, file: &File, entry: &Entry) -> Result<BTreeMap<u64, u64>, Failure> {
    let count = entry.size.div_ceil(PIECE);
    let request = (format!("p {} x 0 {count}", file.part), usize::try_from(count).unwrap_or(usize::MAX));
    let theirs = control.ask_all(&[request]).await?;
    let path = entry.path.clone();
    let compare = move || {
        let mut kept = BTreeMap::new();
        let Ok(local) = LocalFile::open(path) else { return kept };
        for (index, their) in (0..).zip(theirs.into_iter().flatten()) {
            match digest::piece(&local, index) {
                Ok(piece) if their.as_ref() == Ok(&digest::of_bytes(&piece)) => kept.insert(index, piece.len() as u64),
                _ => None,
            };
        }
        kept
    };
    spawn_blocking(compare).await.map_err(Failure::internal)
}
