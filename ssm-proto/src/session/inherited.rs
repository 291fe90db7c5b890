//! Detects whether a session that another program started was used before (HS-11).
//!
//! An agent performs the handshake once (DC-2). With a second client the agent continues like with the first one: there is no
//! handshake and, in a port session, no message at all. A missing message alone proves little, because a new agent may be slow. But
//! an agent that is connected retransmits its first message until it is acknowledged (DC-10). So an agent that acknowledges our
//! message, or sends later messages, without sending its first one has completed its handshake with another client.

use std::time::{Duration, Instant};

use super::{PayloadType, Session, SessionEvent, TerminalSize, shell};
use crate::{Timeout, TimeoutReason};

/// Maximum silence of the agent before it is probed.
const ASK_AFTER: Duration = Duration::from_secs(3);
/// Maximum time until the first message of a connected agent arrives: the agent retransmits it at least every second.
const BELIEVE_AFTER: Duration = Duration::from_secs(2);
/// The terminal size that is sent as the probe. Agents discard a size before the handshake (HS-8) and in port sessions, and a shell
/// needs it anyway.
const SIZE: TerminalSize = TerminalSize { cols: 80, rows: 24 };
/// The sequence number of the probe's message.
const QUESTION: i64 = 0;

/// The state of the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inherited {
    /// The session is new, or the check was not requested.
    Unwatched,
    /// The WebSocket is not connected yet.
    Unconnected,
    /// The agent has been silent since this time.
    Silent(Instant),
    /// The probe was sent.
    Asked,
    /// The agent is known to be connected since this time.
    Answered(Instant),
}

impl Inherited {
    pub(super) fn new(watch: bool) -> Self {
        if watch { Self::Unconnected } else { Self::Unwatched }
    }

    pub(super) fn poll_timeout(self) -> Option<Timeout> {
        let at = match self {
            Self::Silent(since) => since + ASK_AFTER,
            Self::Answered(since) => since + BELIEVE_AFTER,
            Self::Unwatched | Self::Unconnected | Self::Asked => return None,
        };
        Some(Timeout { at, reason: TimeoutReason::Inherited })
    }
}

impl Session {
    /// Advances the check. Call this method whenever a message was received or time has passed.
    pub(super) fn watch_inherited(&mut self, now: Instant) {
        if self.inherited == Inherited::Unwatched {
            return;
        }
        let stats = self.channel.stats();
        let is_there = stats.reordered > 0 || self.channel.is_acknowledged(QUESTION);
        self.inherited = match self.inherited {
            _ if stats.messages_received > 0 => Inherited::Unwatched,
            Inherited::Silent(_) | Inherited::Asked if is_there => Inherited::Answered(now),
            Inherited::Silent(since) if now >= since + ASK_AFTER => {
                let size = self.size.unwrap_or(SIZE);
                self.size_sent = Some(size);
                self.control.push_back((PayloadType::Size, shell::size_payload(size)));
                Inherited::Asked
            }
            Inherited::Answered(since) if now >= since + BELIEVE_AFTER => {
                self.events.push_back(SessionEvent::SeemsUsed);
                Inherited::Unwatched
            }
            same => same,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AgentConfig, ClientConfig, Clock, SessionType};

    const STEP: Duration = Duration::from_millis(50);

    fn clock(now: Instant) -> Clock {
        Clock { start: now, unix: Duration::from_secs(1) }
    }

    fn client(now: Instant) -> Session {
        let config = ClientConfig { inherited: true, ..ClientConfig::default() };
        let mut client = Session::client(config, clock(now), 1);
        client.handle_connected(now);
        client
    }

    fn agent(now: Instant, session_type: SessionType) -> Session {
        Session::agent(AgentConfig { session_type, ..AgentConfig::default() }, clock(now), 2)
    }

    fn port() -> SessionType {
        AgentConfig::default().session_type
    }

    /// Exchanges messages for this time. Returns when the client reported that the session was used before, if it did.
    fn run(client: &mut Session, agent: &mut Session, now: &mut Instant, time: Duration) -> Option<Duration> {
        let (since, mut found) = (*now, None);
        while *now < since + time {
            client.handle_timeout(*now);
            agent.handle_timeout(*now);
            loop {
                let (up, down) = (client.poll_transmit(*now), agent.poll_transmit(*now));
                if up.is_none() && down.is_none() {
                    break;
                }
                up.into_iter().for_each(|up| agent.handle_input(*now, up).unwrap());
                down.into_iter().for_each(|down| client.handle_input(*now, down).unwrap());
            }
            while agent.poll_event().is_some() {}
            while let Some(event) = client.poll_event() {
                assert!(!matches!(event, SessionEvent::Failed(_)), "{event:?}");
                if matches!(event, SessionEvent::SeemsUsed) {
                    assert!(found.replace(*now - since).is_none(), "reported twice");
                }
            }
            *now += STEP;
        }
        found
    }

    #[test]
    fn an_agent_that_shook_hands_before_is_found_out_in_seconds() {
        let mut now = Instant::now();
        let (mut first, mut agent) = (client(now), agent(now, port()));
        agent.handle_connected(now);
        assert_eq!(run(&mut first, &mut agent, &mut now, Duration::from_secs(1)), None);
        let found = run(&mut client(now), &mut agent, &mut now, Duration::from_secs(60)).unwrap();
        assert!((ASK_AFTER..ASK_AFTER + BELIEVE_AFTER + 4 * STEP).contains(&found), "{found:?}");
    }

    #[test]
    fn what_comes_of_the_middle_of_a_session_is_enough() {
        let mut now = Instant::now();
        let (mut first, mut agent) = (client(now), agent(now, port()));
        agent.handle_connected(now);
        assert_eq!(run(&mut first, &mut agent, &mut now, Duration::from_secs(1)), None);
        let stream = first.open().unwrap();
        first.write(stream, "question".into()).unwrap();
        assert_eq!(run(&mut first, &mut agent, &mut now, Duration::from_secs(1)), None);
        agent.write(stream, "answer".into()).unwrap();
        let found = run(&mut client(now), &mut agent, &mut now, Duration::from_secs(60)).unwrap();
        assert!(found < ASK_AFTER, "{found:?}");
    }

    #[test]
    fn an_agent_that_is_slow_to_come_is_no_used_one() {
        for (silence, session_type) in [(1, port()), (10, port()), (40, SessionType::NonInteractiveCommands)] {
            let mut now = Instant::now();
            let (mut client, mut agent) = (client(now), agent(now, session_type));
            let silence = Duration::from_secs(silence);
            let until = now + silence;
            while now < until {
                client.handle_timeout(now);
                // The client's messages are lost.
                while client.poll_transmit(now).is_some() {}
                now += STEP;
            }
            agent.handle_connected(now);
            assert_eq!(run(&mut client, &mut agent, &mut now, Duration::from_secs(30)), None, "{silence:?}");
            assert!(client.session_type().is_some(), "{silence:?}");
        }
    }

    #[test]
    fn nobody_asks_about_a_session_of_ones_own() {
        let mut now = Instant::now();
        let (mut first, mut agent) = (client(now), agent(now, port()));
        agent.handle_connected(now);
        assert_eq!(run(&mut first, &mut agent, &mut now, Duration::from_secs(1)), None);
        let mut client = Session::client(ClientConfig::default(), clock(now), 1);
        client.handle_connected(now);
        assert_eq!(run(&mut client, &mut agent, &mut now, Duration::from_secs(60)), None);
        assert_eq!(client.stats().channel.messages_sent, 0);
    }
}
