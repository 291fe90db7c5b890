//! Requests to a node that are not about bytes, in order, over sessions that may be lost.

use std::sync::Arc;

use bytes::Bytes;

use super::lanes::Losses;
use super::node::{Answer, Node, Taker, Trouble};
use crate::exit_code::Failure;

/// A request, and how many answers it gets. Each may be asked again.
pub(super) type Request = (String, usize);

/// A session for requests, which is replaced when it is lost.
pub(super) struct Control {
    node: Arc<Node>,
    taker: Option<Taker>,
}

impl Control {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self { node, taker: None }
    }

    /// The session, for other purposes.
    pub(super) fn into_taker(self) -> Option<Taker> {
        self.taker
    }

    /// Asks one thing.
    pub(super) async fn ask(&mut self, request: String) -> Result<Answer, Failure> {
        let answers = self.ask_all(&[(request, 1)]).await?;
        Ok(answers.into_iter().flatten().next().unwrap_or(Err(String::new())))
    }

    /// Asks all of `requests`; the answers of each are together.
    pub(super) async fn ask_all(&mut self, requests: &[Request]) -> Result<Vec<Vec<Answer>>, Failure> {
        let mut all = Vec::new();
        let mut losses = Losses::default();
        while all.len() < requests.len() {
            let before = all.len();
            if let Err(trouble) = self.go_on(requests, &mut all).await {
                if all.len() > before {
                    losses.forget();
                }
                self.taker = None;
                losses.bear(trouble).await?;
            }
        }
        Ok(all)
    }

    async fn go_on(&mut self, requests: &[Request], all: &mut Vec<Vec<Answer>>) -> Result<(), Trouble> {
        let taker = match &mut self.taker {
            Some(taker) => taker,
            none => none.insert(self.node.taker().await?),
        };
        let mut posted = all.len();
        while all.len() < requests.len() {
            match requests.get(posted) {
                Some((request, _)) if posted - all.len() < taker.window() => {
                    taker.post(request, Bytes::new()).await?;
                    posted += 1;
                }
                _ => {
                    let count = requests.get(all.len()).map_or(0, |(_, count)| *count);
                    let mut answers = Vec::new();
                    for _ in 0..count {
                        answers.push(taker.answer().await?);
                    }
                    all.push(answers);
                }
            }
        }
        Ok(())
    }
}
