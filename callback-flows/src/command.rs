//! Commands: all that may be asked of a flow from outside, and how it is posted.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::journal::{ChildOutcome, Event, Key, Message, Reader, Unreadable, Writer};

/// The version of posted commands that is written.
const FORMAT: u8 = 1;
/// The first byte that begins no posted command of any version: from here on it may begin a text that somebody else has posted.
const NO_FORMAT: u8 = b'\t';

/// Something that is asked of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Begins the flow with this version and input, and has it tell this parent when it is over.
    Start {
        version: u32,
        input: Bytes,
        parent: Option<Parent>,
    },
    /// Hands it a message for a callback of this run, or of whichever run is going.
    Deliver {
        run: Option<u32>,
        callback: Arc<str>,
        message: Message,
    },
    Cancel,
    /// Lets a blocked flow look once more whether its code fits.
    Resume,
    /// Tells the flow of the end of a child of this run.
    ChildEnded {
        run: u32,
        child: Key,
        outcome: ChildOutcome,
    },
}

/// Somebody who wants to know how a flow ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parent {
    /// `name/id`.
    pub(crate) flow: Arc<str>,
    pub(crate) run: u32,
    /// The operation that the child is in the parent.
    pub(crate) child: Key,
    /// The parent wanted another input than the flow has, and is to be told that.
    pub(crate) is_refused: bool,
}

impl Command {
    /// About how many bytes it has.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Command::Start { input, .. } => input.len(),
            Command::Deliver { message: Message { headers, body, .. }, .. } => {
                body.len() + headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
            }
            _ => 0,
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Writer::new(FORMAT);
        match self {
            Command::Start { version, input, parent } => {
                out.0.push(0);
                out.number(u64::from(*version));
                out.bytes(input);
                match parent {
                    None => out.0.push(0),
                    Some(parent) => {
                        out.0.push(1);
                        parent.write(&mut out);
                    }
                }
            }
            Command::Deliver { run, callback, message } => {
                out.0.push(1);
                // There is no run 0.
                out.number(u64::from(run.unwrap_or(0)));
                out.event(&Event::Message { callback: callback.clone(), message: message.clone() });
            }
            Command::Cancel => out.0.push(2),
            Command::Resume => out.0.push(3),
            Command::ChildEnded { run, child, outcome } => {
                out.0.push(4);
                out.number(u64::from(*run));
                out.text(child);
                out.child_outcome(outcome);
            }
        }
        out.0.into()
    }

    pub(crate) fn decode(body: &Bytes) -> Result<Command, Unreadable> {
        let mut reader = Reader::new(body);
        match reader.byte()? {
            FORMAT => {}
            newer if newer > FORMAT && newer < NO_FORMAT => return Err(Unreadable::Newer(newer)),
            _ => return Err(Unreadable::Corrupt),
        }
        let command = match reader.byte()? {
            0 => {
                let (version, input) = (reader.small()?, reader.bytes()?);
                let parent = match reader.byte()? {
                    0 => None,
                    1 => Some(Parent::read(&mut reader)?),
                    _ => return Err(Unreadable::Corrupt),
                };
                Command::Start { version, input, parent }
            }
            1 => {
                let run = Some(reader.small()?).filter(|run| *run != 0);
                let Event::Message { callback, message } = reader.event()? else { return Err(Unreadable::Corrupt) };
                Command::Deliver { run, callback, message }
            }
            2 => Command::Cancel,
            3 => Command::Resume,
            4 => {
                let (run, child) = (reader.small()?, reader.text()?);
                Command::ChildEnded { run, child, outcome: reader.child_outcome()? }
            }
            _ => return Err(Unreadable::Corrupt),
        };
        if reader.is_at_end() { Ok(command) } else { Err(Unreadable::Corrupt) }
    }
}

/// Writes a command as it is posted, in base64: whatever crosses from host to host is JSON.
impl Serialize for Command {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.encode()))
    }
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Command, D::Error> {
        let body = STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)?;
        Command::decode(&body.into()).map_err(D::Error::custom)
    }
}

impl Parent {
    fn write(&self, out: &mut Writer) {
        out.text(&self.flow);
        out.number(u64::from(self.run));
        out.text(&self.child);
        out.0.push(u8::from(self.is_refused));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Parent, Unreadable> {
        let (flow, run, child) = (reader.text()?, reader.small()?, reader.text()?);
        Ok(Parent { flow, run, child, is_refused: reader.byte()? != 0 })
    }

    /// The row in which a child keeps its parent.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Writer::new(FORMAT);
        self.write(&mut out);
        out.0.into()
    }

    pub(crate) fn decode(row: &Bytes) -> Result<Parent, Unreadable> {
        let mut reader = Reader::new(row);
        match reader.byte()? {
            FORMAT => Parent::read(&mut reader),
            newer => Err(Unreadable::Newer(newer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_read_as_it_was_written() {
        let parent = Parent { flow: "broker/1".into(), run: 3, child: "child:order[17]#0".into(), is_refused: false };
        let message =
            Message { id: "m".into(), headers: vec![("a".into(), "b".into())], body: Bytes::from_static(b"1") };
        let commands = [
            Command::Start { version: 2, input: Bytes::from_static(b"17"), parent: None },
            Command::Start { version: 2, input: Bytes::from_static(b"17"), parent: Some(parent.clone()) },
            Command::Deliver { run: Some(1), callback: "callback:x#0".into(), message: message.clone() },
            Command::Deliver { run: None, callback: "callback:x#0".into(), message },
            Command::Cancel,
            Command::Resume,
            Command::ChildEnded { run: 2, child: "child:order[17]#0".into(), outcome: ChildOutcome::Conflict },
        ];
        for command in commands {
            let body = command.encode();
            assert_eq!(Command::decode(&body), Ok(command.clone()));
            let crossed = serde_json::to_vec(&command).unwrap();
            assert_eq!(serde_json::from_slice::<Command>(&crossed).unwrap(), command);
            for length in 0..body.len() {
                assert!(Command::decode(&body.slice(..length)).is_err(), "{command:?}, {length} bytes");
            }
        }
        let refused = Parent { is_refused: true, ..parent };
        assert_eq!(Parent::decode(&refused.encode()), Ok(refused));
    }

    #[test]
    fn a_command_of_a_newer_format_is_told_from_a_damaged_one() {
        assert_eq!(Command::decode(&Bytes::from_static(&[FORMAT + 1, 2])), Err(Unreadable::Newer(FORMAT + 1)));
        assert_eq!(Command::decode(&Bytes::from_static(&[FORMAT, 99])), Err(Unreadable::Corrupt));
        for text in ["\t", "{\"a\": 1}", "hello", "\u{1f980}"] {
            assert_eq!(Command::decode(&text.into()), Err(Unreadable::Corrupt), "{text}");
        }
    }
}
