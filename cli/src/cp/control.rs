//! Requests to a node that carry no file data. They are answered in order. A lost session is replaced.

use std::sync::Arc;

use bytes::Bytes;

use super::lanes::Losses;
use super::node::{Answer, CopyError, Node, RequestSession};
use crate::exit_code::Failure;

/// A request and the number of its answers. It must be safe to send each request again.
pub(super) type Request = (String, usize);

/// A session for requests. It is replaced if it is lost.
pub(super) struct Control {
    node: Arc<Node>,
    session: Option<RequestSession>,
}

impl Control {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self { node, session: None }
    }

    /// Returns the session, if one is open, so that a lane can use it.
    pub(super) fn into_session(self) -> Option<RequestSession> {
        self.session
    }

    /// Sends one request and returns its answer.
    pub(super) async fn ask(&mut self, request: String) -> Result<Answer, Failure> {
        let answers = self.ask_all(&[(request, 1)]).await?;
        Ok(answers.into_iter().flatten().next().unwrap_or(Err(String::new())))
    }

    /// Sends all `requests` and returns the answers of each request.
    pub(super) async fn ask_all(&mut self, requests: &[Request]) -> Result<Vec<Vec<Answer>>, Failure> {
        let mut all = Vec::new();
        let mut losses = Losses::default();
        while all.len() < requests.len() {
            let before = all.len();
            if let Err(error) = self.resume(requests, &mut all).await {
                if all.len() > before {
                    losses.reset();
                }
                self.session = None;
                losses.wait_for_retry(error).await?;
            }
        }
        Ok(all)
    }

    /// Continues with the requests after those in `all`, over one session. Keeps several requests in flight.
    async fn resume(&mut self, requests: &[Request], all: &mut Vec<Vec<Answer>>) -> Result<(), CopyError> {
        let session = match &mut self.session {
            Some(session) => session,
            none => none.insert(self.node.request_session().await?),
        };
        let mut posted = all.len();
        while all.len() < requests.len() {
            match requests.get(posted) {
                Some((request, _)) if posted - all.len() < session.window() => {
                    session.send(request, Bytes::new()).await?;
                    posted += 1;
                }
                _ => {
                    let count = requests.get(all.len()).map_or(0, |(_, count)| *count);
                    let mut answers = Vec::new();
                    for _ in 0..count {
                        answers.push(session.answer().await?);
                    }
                    all.push(answers);
                }
            }
        }
        Ok(())
    }
}
