//! Flags, which exist only in port sessions.

use super::carrier::Carrier;
use super::handshake::Handshake;
use super::{Session, SessionEvent};
use crate::handshake::Version;
use crate::mux::StreamId;
use crate::wire::{MessageBuf, PayloadType, PortFlag};

impl Session {
    /// Handles a flag. Flags in shells are ignored, as agents do.
    pub(super) fn handle_flag(&mut self, payload: &[u8]) {
        if matches!(self.carrier, Carrier::Pending | Carrier::Shell(_)) {
            return;
        }
        match PortFlag::decode(payload) {
            Some(PortFlag::TerminateSession) => self.events.push_back(SessionEvent::Terminated),
            Some(PortFlag::ConnectToPortError) => {
                if let Carrier::Mux(mux) = &mut self.carrier {
                    mux.handle_refusal();
                }
            }
            Some(PortFlag::DisconnectToPort) => {
                if let Carrier::Unmultiplexed(single) = &mut self.carrier {
                    single.handle_disconnect();
                }
            }
            None => tracing::debug!("unknown flag ignored"),
        }
        self.collect_events();
    }

    /// Refuses a stream whose destination cannot be reached (agent side): sends the flag, then ends the stream (PORT-6).
    pub fn refuse(&mut self, id: StreamId) {
        self.send_flag(PortFlag::ConnectToPortError);
        self.reset(id);
    }

    /// Sends the agent the flag to end the session (client side), if the agent supports it. Shells and commands have no such flag.
    /// The API's TerminateSession always works.
    pub fn terminate(&mut self) {
        let understood = match (&self.handshake, &self.carrier) {
            (Handshake::Client(_), Carrier::Mux(_)) => true,
            (Handshake::Client(handshake), Carrier::Unmultiplexed(_)) => {
                Version::new(handshake.agent_version()).client_sees_newer_than(Version::TERMINATE_FLAG)
            }
            _ => false,
        };
        if understood {
            self.send_flag(PortFlag::TerminateSession);
        }
    }

    fn send_flag(&mut self, flag: PortFlag) {
        self.control.push_back((PayloadType::Flag, MessageBuf::from(flag.encode().as_slice())));
    }
}
