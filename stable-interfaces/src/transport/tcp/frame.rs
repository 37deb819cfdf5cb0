//! Frames: the pieces in which messages go over one link.
//!
//! A frame is its length (four bytes), its kind, the number of its message, and a part of that. A message of more than one part lets the parts
//! of others in between, so that a large one holds nobody up. A frame announced longer than a part can be ends the link before any of it
//! is read, and a kind that is not known is stepped over: it is a newer release's.

use std::collections::{HashMap, VecDeque};
use std::io;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_util::codec::{Decoder as _, LengthDelimitedCodec};

use crate::transport::MAX_WHOLE_BYTES;

/// The most bytes of a message in one frame.
const PART: usize = 32 * 1024;
/// The bytes of a frame between its length and the part.
const HEAD: usize = 9;
/// The bytes that are written at once, roughly.
const AT_ONCE: usize = 128 * 1024;
/// The room that is made for what is read, and the room at which more is made: there is enough for many small messages at once.
const ROOM: usize = 16 * 1024;
const LITTLE_ROOM: usize = 2 * 1024;
/// The most bytes of messages of which some parts are there.
const MAX_INCOMPLETE: usize = 64 * 1024 * 1024;

/// The kinds of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The first word of a link, and the answer to it.
    Hello = 1,
    Welcome = 2,
    /// A part of a message, and its last part.
    Part = 3,
    Last = 4,
    /// A question of the one that has called, and its answer.
    Ping = 5,
    Pong = 6,
    /// The last word of who was called: what it has not answered it has not taken.
    Goodbye = 7,
}

impl Kind {
    const ALL: [Kind; 7] = [Kind::Hello, Kind::Welcome, Kind::Part, Kind::Last, Kind::Ping, Kind::Pong, Kind::Goodbye];

    fn of(byte: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One frame, whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) number: u64,
    pub(super) part: Bytes,
}

/// Writes a frame. A part is at most [`PART`] bytes long.
pub(super) fn put(out: &mut BytesMut, kind: Kind, number: u64, part: &[u8]) {
    let length = u32::try_from(HEAD + part.len()).expect("a part is short");
    out.reserve(4 + HEAD + part.len());
    out.put_u32(length);
    out.put_u8(kind as u8);
    out.put_u64(number);
    out.put_slice(part);
}

/// Writes as much as goes at once, and has it sent when nothing is left. Dropped on the way, it has written nothing that is still there.
pub(super) async fn write_some(
    writer: &mut (impl AsyncWrite + Unpin),
    out: &mut BytesMut,
    must_flush: &mut bool,
) -> io::Result<()> {
    if !out.is_empty() {
        writer.write_buf(out).await?;
        return Ok(());
    }
    writer.flush().await?;
    *must_flush = false;
    Ok(())
}

/// Reads what there is; the number of bytes, zero at the end. Dropped on the way, it has read nothing that is not there.
pub(super) async fn read_some(reader: &mut (impl AsyncRead + Unpin), incoming: &mut BytesMut) -> io::Result<usize> {
    if incoming.capacity() - incoming.len() < LITTLE_ROOM {
        incoming.reserve(ROOM);
    }
    reader.read_buf(incoming).await
}

/// Takes frames off what has come in.
#[derive(Debug)]
pub(super) struct Frames {
    codec: LengthDelimitedCodec,
    /// Frames taken so far.
    pub(super) taken: u64,
}

impl Frames {
    pub(super) fn new() -> Frames {
        let codec = LengthDelimitedCodec::builder().max_frame_length(PART + HEAD).new_codec();
        Frames { codec, taken: 0 }
    }

    /// The next frame, if all of it is there.
    pub(super) fn next(&mut self, incoming: &mut BytesMut) -> io::Result<Option<Frame>> {
        while let Some(mut frame) = self.codec.decode(incoming)? {
            if frame.len() < HEAD {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame without a head"));
            }
            self.taken += 1;
            let (kind, number) = (frame.get_u8(), frame.get_u64());
            if let Some(kind) = Kind::of(kind) {
                return Ok(Some(Frame { kind, number, part: frame.freeze() }));
            }
        }
        Ok(None)
    }
}

/// Puts messages together from their parts.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    parts: HashMap<u64, BytesMut>,
    bytes: usize,
}

impl Assembly {
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Adds a part; the message, if it was the last one.
    pub(super) fn add(&mut self, frame: Frame) -> io::Result<Option<Bytes>> {
        let is_last = frame.kind == Kind::Last;
        if is_last && self.parts.is_empty() {
            return Ok(Some(frame.part));
        }
        let so_far = self.parts.remove(&frame.number);
        if is_last && so_far.is_none() {
            return Ok(Some(frame.part));
        }
        let mut message = so_far.unwrap_or_default();
        self.bytes -= message.len();
        message.extend_from_slice(&frame.part);
        if message.len() > MAX_WHOLE_BYTES || self.bytes + message.len() > MAX_INCOMPLETE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too large"));
        }
        if is_last {
            return Ok(Some(message.freeze()));
        }
        self.bytes += message.len();
        self.parts.insert(frame.number, message);
        Ok(None)
    }
}

/// Messages that wait to be written.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    messages: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

impl Outbox {
    pub(super) fn push(&mut self, number: u64, message: Bytes) {
        self.bytes += message.len();
        self.messages.push_back((number, message));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The bytes of all that waits.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes as many parts as go at once, of each message one in turn. Tells the number of each of which something is written: messages begin in
    /// the order in which they were pushed.
    pub(super) fn write(&mut self, out: &mut BytesMut, mut begun: impl FnMut(u64)) {
        while out.len() < AT_ONCE
            && let Some((number, mut message)) = self.messages.pop_front()
        {
            begun(number);
            let part = message.split_to(message.len().min(PART));
            let kind = if message.is_empty() { Kind::Last } else { Kind::Part };
            put(out, kind, number, &part);
            self.bytes -= part.len();
            if kind == Kind::Part {
                self.messages.push_back((number, message));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::MAX_MESSAGE_BYTES;

    fn all(frames: &mut Frames, mut bytes: BytesMut) -> Vec<Frame> {
        std::iter::from_fn(|| frames.next(&mut bytes).unwrap()).collect()
    }

    #[test]
    fn messages_come_out_as_they_went_in_and_a_small_one_does_not_wait_for_the_end_of_a_large_one() {
        let (large, small) = (Bytes::from(vec![7; MAX_MESSAGE_BYTES]), Bytes::from_static(b"small"));
        let mut outbox = Outbox::default();
        outbox.push(1, large.clone());
        outbox.push(2, small.clone());
        outbox.push(3, Bytes::new());
        let (mut frames, mut assembly, mut came) = (Frames::new(), Assembly::default(), Vec::new());
        while !outbox.is_empty() {
            let mut out = BytesMut::new();
            outbox.write(&mut out, |_| {});
            assert!(out.len() <= AT_ONCE + PART + HEAD + 4);
            for frame in all(&mut frames, out) {
                let number = frame.number;
                came.extend(assembly.add(frame).unwrap().map(|message| (number, message)));
            }
        }
        assert_eq!(came, [(2, small), (3, Bytes::new()), (1, large)]);
        assert!(assembly.is_empty() && assembly.bytes == 0 && outbox.bytes() == 0);
    }

    #[test]
    fn a_frame_announced_longer_than_a_part_ends_the_link_and_an_unknown_kind_is_stepped_over() {
        let mut frames = Frames::new();
        let mut hostile = BytesMut::from(&u32::MAX.to_be_bytes()[..]);
        assert!(frames.next(&mut hostile).is_err());
        assert!(hostile.capacity() < PART, "nothing was made ready for it");
        let mut short = BytesMut::from(&[0, 0, 0, 1, 4][..]);
        assert!(Frames::new().next(&mut short).is_err());

        let mut out = BytesMut::new();
        out.put_u32(u32::try_from(HEAD).unwrap() + 3);
        out.put_slice(&[99, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3]);
        put(&mut out, Kind::Ping, 0, b"");
        let frames = all(&mut Frames::new(), out);
        assert_eq!(frames, [Frame { kind: Kind::Ping, number: 0, part: Bytes::new() }]);
    }

    #[test]
    fn what_is_incomplete_is_bounded_for_one_message_and_for_all() {
        let part = |number| Frame { kind: Kind::Part, number, part: Bytes::from(vec![0; PART]) };
        let mut one = Assembly::default();
        let taken = (0..).take_while(|_| one.add(part(1)).is_ok()).count();
        assert_eq!(taken, MAX_WHOLE_BYTES / PART);
        let mut many = Assembly::default();
        let taken = (0..).take_while(|number| many.add(part(*number)).is_ok()).count();
        assert_eq!(taken, MAX_INCOMPLETE / PART);
    }
}
