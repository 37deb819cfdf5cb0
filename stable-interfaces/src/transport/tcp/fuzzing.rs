//! Any bytes as what comes over a link.

use bytes::{Bytes, BytesMut};

use super::frame::{Assembly, Frames, Kind, put};
use super::hello::Hello;

/// The most bytes that are also read one at a time.
const ONE_BY_ONE: usize = 16 * 1024;

/// The frames and messages in what has come, until it ends the link or is over.
#[derive(Debug, PartialEq, Eq, Default)]
struct Heard {
    frames: Vec<(Kind, u64, Bytes)>,
    messages: Vec<Bytes>,
    ends: bool,
}

fn hear<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Heard {
    let (mut frames, mut assembly, mut incoming) = (Frames::new(), Assembly::default(), BytesMut::new());
    let mut heard = Heard::default();
    for piece in pieces {
        incoming.extend_from_slice(piece);
        loop {
            match frames.next(&mut incoming) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    heard.frames.push((frame.kind, frame.number, frame.part.clone()));
                    if matches!(frame.kind, Kind::Part | Kind::Last) {
                        match assembly.add(frame) {
                            Ok(message) => heard.messages.extend(message),
                            Err(_) => return Heard { ends: true, ..heard },
                        }
                    }
                }
                Err(_) => return Heard { ends: true, ..heard },
            }
        }
    }
    heard
}

/// The same frames come out wherever it was cut, and once more when they are written again; messages are no longer than all that came; and a first
/// word is none, or reads the same.
pub(crate) fn stream(data: &[u8]) -> bool {
    let heard = hear([data]);
    if data.len() <= ONE_BY_ONE {
        assert_eq!(hear(data.chunks(1)), heard);
    }
    let mut again = BytesMut::new();
    heard.frames.iter().for_each(|(kind, number, part)| put(&mut again, *kind, *number, part));
    let again = hear([&*again]);
    assert_eq!((&again.frames, &again.messages), (&heard.frames, &heard.messages));
    assert!(heard.messages.iter().map(Bytes::len).sum::<usize>() <= data.len());
    for (kind, _, part) in &heard.frames {
        if matches!(kind, Kind::Hello | Kind::Welcome) {
            Hello::try_out(part);
        }
    }
    !heard.frames.is_empty()
}
