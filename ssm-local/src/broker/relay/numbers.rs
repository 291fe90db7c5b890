//! The numbers of messages to the agent. They differ from the client's numbers once the agent has processed a message twice.

use bytes::{Bytes, BytesMut};
use ssm_proto::{Acknowledge, AgentMessage, MessageType};

use crate::wire::{SEQUENCE_NUMBER, message_type, sequence_number};

/// Translates message numbers between the client and the agent.
///
/// A message that is processed twice (`process-twice`) uses two of the agent's numbers. The acknowledgement of the first number is
/// dropped, so that the client retransmits the message. The retransmission gets the second number.
#[derive(Debug, Default)]
pub(super) struct AgentNumbers {
    /// The highest number that the client has sent.
    highest: Option<i64>,
    /// The messages that are processed twice, in ascending order.
    twice: Vec<Twice>,
}

/// A message that is processed twice.
#[derive(Debug)]
struct Twice {
    /// The client's number.
    number: i64,
    /// Whether the agent has acknowledged the first transmission. Until then, that transmission may have been lost or refused, so
    /// retransmissions keep the first number.
    accepted: bool,
}

impl AgentNumbers {
    /// Records a data message. Returns whether the client sends it for the first time.
    pub(super) fn is_new(&mut self, message: &[u8]) -> bool {
        let number = sequence_number(message);
        let is_new = number > self.highest;
        self.highest = self.highest.max(number);
        is_new
    }

    /// Records that the agent processes the newest message of the client twice.
    pub(super) fn repeat_newest(&mut self) {
        self.twice.extend(self.highest.map(|number| Twice { number, accepted: false }));
    }

    /// Returns whether the agent's numbers differ from the client's.
    pub(super) fn differ(&self) -> bool {
        !self.twice.is_empty()
    }

    /// Replaces the client's number in a data message by the agent's number.
    pub(super) fn to_agent(&self, message: Bytes) -> Bytes {
        let Some(number) = sequence_number(&message) else { return message };
        let shifts = |twice: &&Twice| twice.number < number || (twice.number == number && twice.accepted);
        match self.twice.iter().take_while(shifts).count() {
            0 => message,
            shift => with_number(&message, number.saturating_add_unsigned(shift as u64)),
        }
    }

    /// Replaces the agent's number in an acknowledgement by the client's number. Returns `None` if the client must not receive the
    /// acknowledgement. Other messages are returned unchanged.
    pub(super) fn ack_for_client(&mut self, message: Bytes) -> Option<Bytes> {
        if self.twice.is_empty() || message_type(&message) != Some(MessageType::Acknowledge) {
            return Some(message);
        }
        let Ok(decoded) = AgentMessage::decode(message.clone()) else { return Some(message) };
        let Some(ack) = Acknowledge::decode(decoded.payload()) else { return Some(message) };
        let mut shift = 0;
        for twice in &mut self.twice {
            match ack.sequence_number.cmp(&twice.number.saturating_add(shift)) {
                std::cmp::Ordering::Less => break,
                std::cmp::Ordering::Equal => {
                    twice.accepted = true;
                    return None;
                }
                std::cmp::Ordering::Greater => shift += 1,
            }
        }
        let ack = Acknowledge { sequence_number: ack.sequence_number.saturating_sub(shift), ..ack };
        Some(ack.encode(decoded.header().created_date, decoded.message_id()))
    }
}

/// Returns the message with this sequence number. The digest stays correct, because it does not cover the header.
fn with_number(message: &[u8], number: i64) -> Bytes {
    let mut changed = BytesMut::from(message);
    if let Some(field) = changed.get_mut(SEQUENCE_NUMBER) {
        field.copy_from_slice(&number.to_be_bytes());
    }
    changed.freeze()
}

#[cfg(test)]
mod tests {
    use ssm_proto::{Header, MessageBuf};
    use uuid::Uuid;

    use super::*;

    fn data(number: i64) -> Bytes {
        let header =
            Header { sequence_number: number, ..Header::new(MessageType::InputStreamData, 1, Uuid::from_u128(9)) };
        header.seal(MessageBuf::from(b"payload".as_slice()))
    }

    fn ack(number: i64) -> Bytes {
        let (message_type, message_id) = (MessageType::InputStreamData, Uuid::from_u128(9));
        Acknowledge { message_type, message_id, sequence_number: number }.encode(1, Uuid::nil())
    }

    /// Returns the agent's numbers of messages that the client sends with the numbers `sent`.
    fn agent_s(numbers: &AgentNumbers, sent: std::ops::Range<i64>) -> Vec<i64> {
        let number = |message: Bytes| AgentMessage::decode(message).unwrap().sequence_number();
        sent.map(|sent| number(numbers.to_agent(data(sent)))).collect()
    }

    /// Returns the numbers in the acknowledgements to the client when the agent acknowledges these numbers.
    fn client_s(numbers: &mut AgentNumbers, acknowledged: std::ops::Range<i64>) -> Vec<Option<i64>> {
        let number = |ack: Bytes| Acknowledge::decode_number(AgentMessage::decode(ack).unwrap().payload());
        acknowledged.map(|acknowledged| numbers.ack_for_client(ack(acknowledged)).and_then(number)).collect()
    }

    #[test]
    fn the_retransmission_of_a_message_is_the_agent_s_next_one_and_the_first_acknowledgement_is_dropped() {
        let mut numbers = AgentNumbers::default();
        for sent in 0..6 {
            assert!(numbers.is_new(&data(sent)));
            assert!(!numbers.is_new(&data(sent)), "a retransmission");
            if [2, 3, 5].contains(&sent) {
                // The first transmission has the number before the shift.
                let shift = numbers.twice.len() as i64;
                assert_eq!(agent_s(&numbers, sent..sent + 1), [sent + shift]);
                numbers.repeat_newest();
                assert_eq!(agent_s(&numbers, sent..sent + 1), [sent + shift], "the first transmission may be lost");
                assert_eq!(numbers.ack_for_client(ack(sent + shift)), None);
            }
        }
        assert!(numbers.differ());
        assert_eq!(agent_s(&numbers, 0..8), [0, 1, 3, 5, 6, 8, 9, 10]);
        let expected = [Some(0), Some(1), None, Some(2), None, Some(3), Some(4), None, Some(5), Some(6)];
        assert_eq!(client_s(&mut numbers, 0..10), expected);
        assert_eq!(numbers.ack_for_client(data(4)), Some(data(4)), "a data message is returned unchanged");
    }

    #[test]
    fn without_the_fault_nothing_is_changed() {
        let mut numbers = AgentNumbers::default();
        assert!(numbers.is_new(&data(0)) && !numbers.differ());
        assert_eq!((numbers.to_agent(data(7)), numbers.ack_for_client(ack(7))), (data(7), Some(ack(7))));
    }
}
