//! The effects of faults on a relay, apart from their effects on messages.

use std::future::Future;
use std::task::Context;

use futures_util::StreamExt;
use ssm_proto::publication;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::{ClientSocket, END_TIMEOUT, End, Relay, now, service_message};
use crate::broker::SessionState;
use crate::faults::{Action, Direction, Fault, SessionFaults};

impl Relay {
    pub(super) fn set_faults(&mut self, faults: Option<Box<SessionFaults>>) {
        // Before the client connects, there is nothing to disturb. When it connects, the relay gets the faults that are set at that
        // time.
        if self.spec.is_some() {
            return;
        }
        if let Some(mut old) = std::mem::replace(&mut self.faults, faults) {
            old.release_all(&mut self.up, &mut self.down);
        }
    }

    pub(super) fn add_fault(&mut self, fault: Fault) {
        if self.spec.is_none() {
            self.faults.get_or_insert_with(|| Box::new(SessionFaults::new([], 0, now()))).add(fault, now());
        }
    }

    /// Applies the faults that are due. Returns the end of the session if a fault ended it.
    pub(super) fn disturb(&mut self, cx: &mut Context<'_>) -> Option<End> {
        loop {
            let faults = self.faults.as_mut()?;
            faults.handle_timeout(now(), &mut self.up, &mut self.down);
            let due = faults.poll_timeout();
            while let Some(action) = self.faults.as_mut()?.poll_action() {
                if let Some(end) = self.act(action) {
                    return Some(end);
                }
            }
            let at = Instant::from_std(due?);
            if self.faults_timer.deadline() != at {
                self.faults_timer.as_mut().reset(at);
            }
            if self.faults_timer.as_mut().poll(cx).is_pending() {
                return None;
            }
        }
    }

    fn act(&mut self, action: Action) -> Option<End> {
        match action {
            Action::Close { code, reason } => {
                let frame = CloseFrame { code: code.into(), reason: reason.into() };
                if let Some(client) = self.client.take() {
                    tokio::spawn(timeout(END_TIMEOUT, close(client, frame)));
                    self.disconnect(&"closed by a fault");
                }
            }
            Action::Reset => {
                if let Some(client) = self.client.take() {
                    // If this fails, the socket is closed normally instead.
                    let _ = client.get_ref().set_zero_linger();
                    self.disconnect(&"reset by a fault");
                }
            }
            Action::Publication { start, direction } => {
                let message = service_message(|date, id| publication(start, date, id));
                if direction != Direction::Down {
                    self.up.push_back(message.clone());
                }
                if direction != Direction::Up {
                    self.down.push_back(message);
                }
            }
            Action::End { failed, text } => {
                let state = if failed { SessionState::Failed } else { SessionState::Terminated };
                return Some(End { state, output: text });
            }
        }
        None
    }
}

/// Closes a WebSocket, and waits for the client's close frame.
async fn close(mut client: Box<ClientSocket>, frame: CloseFrame) {
    if client.close(Some(frame)).await.is_ok() {
        while let Some(Ok(_)) = client.next().await {}
    }
}
