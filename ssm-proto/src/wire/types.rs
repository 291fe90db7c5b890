//! The header's enumerations.

use std::fmt;

/// The type of a message: the header's MessageType.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MessageType {
    /// All numbered messages from the client to the agent.
    InputStreamData,
    /// All numbered messages from the agent to the client.
    OutputStreamData,
    /// An acknowledgement of one numbered message, in both directions.
    Acknowledge,
    /// From the service to both ends: the session has ended.
    ChannelClosed,
    /// From the service to one end: the other end's data channel is active.
    StartPublication,
    /// From the service to one end: the other end's data channel is inactive.
    PausePublication,
    /// From the agent to the service.
    AgentSessionState,
    /// From the service to the agent, control channel: start a session.
    InteractiveShell,
    /// From the service to the agent, control channel.
    AgentTaskAcknowledge,
    /// From the agent to the service, control channel: the result of a session.
    AgentTaskComplete,
    /// From the agent to the service, control channel.
    AgentTaskReply,
    /// From the service to the agent, control channel: Run Command.
    AgentJob,
    /// From the agent to the service, control channel.
    AgentJobAck,
    /// From the agent to the service, control channel.
    AgentJobReply,
    /// From the service to the agent, control channel.
    AgentJobReplyAck,
    /// A type that this crate does not know. It is preserved when the message is encoded again.
    Unknown(UnknownType),
}

/// The name of a message type that this crate does not know: at most 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct UnknownType {
    bytes: [u8; 32],
    len: u8,
}

impl fmt::Debug for UnknownType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(self.as_bytes()), f)
    }
}

impl UnknownType {
    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// The types that this crate knows. The types of the hot path are first.
const NAMES: [(&[u8], MessageType); 15] = [
    (b"input_stream_data", MessageType::InputStreamData),
    (b"output_stream_data", MessageType::OutputStreamData),
    (b"acknowledge", MessageType::Acknowledge),
    (b"channel_closed", MessageType::ChannelClosed),
    (b"start_publication", MessageType::StartPublication),
    (b"pause_publication", MessageType::PausePublication),
    (b"agent_session_state", MessageType::AgentSessionState),
    (b"interactive_shell", MessageType::InteractiveShell),
    (b"agent_task_acknowledge", MessageType::AgentTaskAcknowledge),
    (b"agent_task_complete", MessageType::AgentTaskComplete),
    (b"agent_task_reply", MessageType::AgentTaskReply),
    (b"agent_job", MessageType::AgentJob),
    (b"agent_job_ack", MessageType::AgentJobAck),
    (b"agent_job_reply", MessageType::AgentJobReply),
    (b"agent_job_reply_ack", MessageType::AgentJobReplyAck),
];

/// The header field of each type as both peers write it: padded with spaces (WIRE-4).
#[expect(clippy::indexing_slicing, reason = "evaluated at compile time")]
const FIELDS: [[u8; 32]; NAMES.len()] = {
    let mut fields = [[b' '; 32]; NAMES.len()];
    let mut at = 0;
    while at < fields.len() {
        let (name, _) = NAMES[at];
        fields[at].split_at_mut(name.len()).0.copy_from_slice(name);
        at += 1;
    }
    fields
};

impl MessageType {
    /// Parses the header's 32-byte field. NULs and white space are trimmed at both ends (WIRE-4). Returns `None` if the rest is
    /// empty.
    pub(super) fn from_field(field: &[u8; 32]) -> Option<(Self, Padding)> {
        if let Some((_, (_, known))) = FIELDS.iter().zip(&NAMES).find(|(usual, _)| *usual == field) {
            return Some((*known, Padding::Space));
        }
        let mut name = field.trim_ascii();
        while let [0, rest @ ..] | [rest @ .., 0] = name {
            name = rest.trim_ascii();
        }
        let padding = if field.contains(&0) { Padding::Nul } else { Padding::Space };
        Some((Self::from_name(name)?, padding))
    }

    /// Parses a name as it is written in JSON. Returns `None` if the name is empty or longer than the header's field.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        if name.is_empty() {
            return None;
        }
        if let Some((_, known)) = NAMES.iter().find(|(text, _)| *text == name) {
            return Some(*known);
        }
        let mut bytes = [0; 32];
        bytes.get_mut(..name.len())?.copy_from_slice(name);
        Some(Self::Unknown(UnknownType { bytes, len: u8::try_from(name.len()).ok()? }))
    }

    /// Returns the name on the wire, without padding.
    pub fn name(&self) -> &[u8] {
        match self {
            Self::Unknown(unknown) => unknown.as_bytes(),
            known => NAMES.iter().find(|(_, kind)| kind == known).map_or(&[], |(text, _)| *text),
        }
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.name()))
    }
}

/// The payload type of a numbered message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PayloadType {
    /// No payload type: acknowledgements, state, and messages in the short form.
    None,
    /// Session data.
    Output,
    /// An error; defined but never sent.
    Error,
    /// The terminal size as JSON.
    Size,
    /// A parameter; defined but never used.
    Parameter,
    /// JSON from the agent to the client.
    HandshakeRequest,
    /// JSON from the client to the agent.
    HandshakeResponse,
    /// JSON from the agent to the client.
    HandshakeComplete,
    /// JSON from the agent to the client.
    EncChallengeRequest,
    /// JSON from the client to the agent.
    EncChallengeResponse,
    /// A [`PortFlag`].
    Flag,
    /// The standard error of a command, if it is kept separate.
    StdErr,
    /// The exit code of a command as text, `EXIT_CODE: n`.
    ExitCode,
    /// A number that this crate does not know.
    Unknown(u32),
}

impl From<u32> for PayloadType {
    fn from(number: u32) -> Self {
        match number {
            0 => Self::None,
            1 => Self::Output,
            2 => Self::Error,
            3 => Self::Size,
            4 => Self::Parameter,
            5 => Self::HandshakeRequest,
            6 => Self::HandshakeResponse,
            7 => Self::HandshakeComplete,
            8 => Self::EncChallengeRequest,
            9 => Self::EncChallengeResponse,
            10 => Self::Flag,
            11 => Self::StdErr,
            12 => Self::ExitCode,
            unknown => Self::Unknown(unknown),
        }
    }
}

impl From<PayloadType> for u32 {
    fn from(payload_type: PayloadType) -> Self {
        match payload_type {
            PayloadType::None => 0,
            PayloadType::Output => 1,
            PayloadType::Error => 2,
            PayloadType::Size => 3,
            PayloadType::Parameter => 4,
            PayloadType::HandshakeRequest => 5,
            PayloadType::HandshakeResponse => 6,
            PayloadType::HandshakeComplete => 7,
            PayloadType::EncChallengeRequest => 8,
            PayloadType::EncChallengeResponse => 9,
            PayloadType::Flag => 10,
            PayloadType::StdErr => 11,
            PayloadType::ExitCode => 12,
            PayloadType::Unknown(number) => number,
        }
    }
}

/// The content of a [`PayloadType::Flag`] message: a big-endian `u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PortFlag {
    /// From the client to the agent, basic mode: the local connection ended.
    DisconnectToPort,
    /// From the client to the agent: end the session.
    TerminateSession,
    /// From the agent to the client: a stream's destination could not be reached. The flag does not name the stream.
    ConnectToPortError,
}

impl PortFlag {
    /// Decodes a payload. Returns `None` if the payload is not a flag that this crate knows.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        match payload {
            [0, 0, 0, 1] => Some(Self::DisconnectToPort),
            [0, 0, 0, 2] => Some(Self::TerminateSession),
            [0, 0, 0, 3] => Some(Self::ConnectToPortError),
            _ => None,
        }
    }

    /// Encodes the flag as a payload.
    pub fn encode(self) -> [u8; 4] {
        match self {
            Self::DisconnectToPort => [0, 0, 0, 1],
            Self::TerminateSession => [0, 0, 0, 2],
            Self::ConnectToPortError => [0, 0, 0, 3],
        }
    }
}

/// The form of the header: with or without a payload type (WIRE-2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderForm {
    /// HeaderLength 116, with a payload type. Both peers send this form.
    #[default]
    Full,
    /// HeaderLength 112, without a payload type. The service is reported to send `channel_closed` in this form.
    Short,
}

impl HeaderForm {
    /// Returns the value of the HeaderLength field: the offset of PayloadLength.
    pub fn header_length(self) -> usize {
        match self {
            Self::Full => 116,
            Self::Short => 112,
        }
    }
}

/// The padding of the MessageType field (WIRE-4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Padding {
    /// Padding with spaces, as both peers send.
    #[default]
    Space,
    /// Padding with NULs, as the service sends.
    Nul,
}
