//! The end of a link that has called: asks, and hears the answers.
//!
//! A request waits in the link's outbox until a first byte of it is written; until then it was not sent. A link begins with its first request
//! and goes on until it fails; the next request then begins another one.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;

use super::Options;
use super::frame::{Assembly, Frames, Kind, Outbox, put, read_some, write_some};
use super::hello::{Hello, Wire, call, in_time};
use crate::sync::{Arc, Mutex, Notify, oneshot};
use crate::transport::{Addressee, Introduction, Undelivered};

/// The time between two looks at a link on which something is asked.
const LOOK: Duration = Duration::from_millis(750);
/// The time between two looks at a link on which nothing is.
const LOOK_IDLE: Duration = Duration::from_secs(10);
/// The time after which a host counts as one that cannot be reached, from the call to the end of its greeting.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// After so many looks at which nothing was heard a link is over. With the first of them the other side is asked for a sign of life.
const SILENT_LOOKS: u32 = 3;

/// An answer on its way.
pub(super) type AnswerOf = oneshot::Receiver<Result<Bytes, Undelivered>>;

/// The other end of it.
type Asked = oneshot::Sender<Result<Bytes, Undelivered>>;

/// Spreads the numbers of requests over a table. They are counted by this host itself, so that nobody can choose those that collide.
#[derive(Debug, Default)]
struct OfNumber(u64);

impl Hasher for OfNumber {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // Multiplicative hashing (Knuth, The Art of Computer Programming, 6.4).
        self.0 = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The link to one host.
#[derive(Debug, Default)]
pub(super) struct Link {
    state: Mutex<State>,
    /// A notice for when there is something to write.
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Asked and not answered, by number.
    asked: HashMap<u64, Asked, BuildHasherDefault<OfNumber>>,
    next: u64,
    /// The first number of which nothing is sent: they begin in their order.
    unsent: u64,
    outbox: Outbox,
    /// Says whether there is a task that sees to it.
    is_running: bool,
    /// Says whether another link has its place.
    is_left: bool,
}

/// A link that is to begin. Dropped before it has, it ends.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) link: EndsLink,
    pub(super) to: Addressee,
}

impl Link {
    /// Asks; tells also whether this is to begin the link.
    pub(super) fn ask(&self, request: Bytes) -> (AnswerOf, bool) {
        let (answer, answered) = oneshot::channel();
        let (is_first, is_awake) = {
            let mut state = self.state.lock();
            let number = state.next;
            state.next += 1;
            state.asked.insert(number, answer);
            // What waits already is still to be written, and this with it.
            let is_awake = !state.outbox.is_empty();
            state.outbox.push(number, request);
            (!std::mem::replace(&mut state.is_running, true), is_awake)
        };
        if !is_awake {
            self.wake.notify_one();
        }
        (answered, is_first)
    }

    /// Writes what waits.
    fn write(&self, out: &mut BytesMut) {
        let State { outbox, unsent, .. } = &mut *self.state.lock();
        outbox.write(out, |number| *unsent = (*unsent).max(number + 1));
    }

    fn is_idle(&self) -> bool {
        self.state.lock().asked.is_empty()
    }

    /// The host is called at another address from now on.
    pub(super) fn is_not_asked_again(&self) {
        self.state.lock().is_left = true;
    }

    /// Tells whether nothing is asked on it and nothing will be.
    fn has_no_use(&self) -> bool {
        let state = self.state.lock();
        state.is_left && state.asked.is_empty()
    }

    /// Hands out what has come together.
    fn answered(&self, answers: &mut Vec<(u64, Bytes)>) {
        if answers.is_empty() {
            return;
        }
        let asked: Vec<_> = {
            let mut state = self.state.lock();
            answers.drain(..).filter_map(|(number, answer)| Some((state.asked.remove(&number)?, answer))).collect()
        };
        for (asked, answer) in asked {
            // Whoever has asked may have gone.
            drop(asked.send(Ok(answer)));
        }
    }

    /// Ends it. `has_parted` says that the other host has taken nothing that it has not answered.
    fn end(&self, reason: &str, has_parted: bool) {
        let (asked, unsent) = {
            let state = &mut *self.state.lock();
            state.is_running = false;
            state.outbox = Outbox::default();
            (std::mem::take(&mut state.asked), std::mem::replace(&mut state.unsent, state.next))
        };
        for (number, asked) in asked {
            let is_sent = number < unsent;
            let undelivered = if is_sent && !has_parted { Undelivered::Unanswered } else { Undelivered::NotSent };
            drop(asked.send(Err(undelivered(reason.into()))));
        }
    }
}

/// Ends a link also where its task is dropped, or never comes to be.
#[derive(Debug)]
pub(super) struct EndsLink(pub(super) Option<Arc<Link>>);

impl Drop for EndsLink {
    fn drop(&mut self) {
        if let Some(link) = &self.0 {
            link.end("the transport has ended", false);
        }
    }
}

/// Calls the other host, and carries what is asked of it until the link fails.
pub(super) async fn run(start: Start, own: Arc<Introduction>, options: Options) {
    let Start { link: mut ends, to } = start;
    let Some(link) = ends.0.clone() else { return };
    let (reason, has_parted) = match connect(&to, &own, &options).await {
        Ok((stream, frames, incoming)) => match talk(stream, frames, incoming, &link, &own).await {
            Ok(()) => ("it has said goodbye".to_owned(), true),
            Err(error) => (error.to_string(), false),
        },
        Err(error) => (error.to_string(), true),
    };
    tracing::debug!(host = %own.host, to = %to.host, %reason, "a link has ended");
    // From here on another task may see to it.
    ends.0 = None;
    link.end(&reason, has_parted);
}

/// A stream to a host that has been greeted, and what has come in already.
type Greeted = (Box<dyn Wire>, Frames, BytesMut);

async fn connect(to: &Addressee, own: &Introduction, options: &Options) -> io::Result<Greeted> {
    let address = options.address_of(to)?;
    let connecting = async {
        let stream = TcpStream::connect(&address).await?;
        stream.set_nodelay(true)?;
        let mut stream: Box<dyn Wire> = match &options.tls {
            Some(tls) => tls.call(stream, &to.host).await?,
            None => Box::new(stream),
        };
        let (mut frames, mut incoming) = (Frames::new(), BytesMut::new());
        let hello = Hello::new(own, options.fleet.as_deref(), &to.host);
        call(&mut *stream, &hello, &mut frames, &mut incoming).await?;
        Ok((stream, frames, incoming))
    };
    let greeted = in_time(own, CALL_TIMEOUT, connecting).await;
    if let Err(error) = &greeted
        && error.kind() == io::ErrorKind::PermissionDenied
    {
        tracing::warn!(host = %own.host, to = %to.host, address, %error, "another host was called in vain");
    }
    greeted
}

/// The end of what has come in so far.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Answers,
    Goodbye,
}

/// Takes the answers off what has come in.
fn hear(
    frames: &mut Frames,
    incoming: &mut BytesMut,
    assembly: &mut Assembly,
    answers: &mut Vec<(u64, Bytes)>,
) -> io::Result<Heard> {
    while let Some(frame) = frames.next(incoming)? {
        let number = frame.number;
        match frame.kind {
            Kind::Part | Kind::Last => answers.extend(assembly.add(frame)?.map(|answer| (number, answer))),
            Kind::Goodbye => return Ok(Heard::Goodbye),
            _ => {}
        }
    }
    Ok(Heard::Answers)
}

/// Carries what is asked until the other host has said its last word.
async fn talk(
    stream: Box<dyn Wire>,
    mut frames: Frames,
    mut incoming: BytesMut,
    link: &Link,
    own: &Introduction,
) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (mut out, mut assembly, mut answers) = (BytesMut::new(), Assembly::default(), Vec::new());
    let (mut must_flush, mut is_asking, mut has_heard, mut silent) = (false, false, true, 0);
    // One that takes nothing any more may have said goodbye before: that is still to be heard.
    let mut is_taken = true;
    let mut look = own.clock.sleep(LOOK_IDLE);
    loop {
        let heard = hear(&mut frames, &mut incoming, &mut assembly, &mut answers);
        link.answered(&mut answers);
        if heard? == Heard::Goodbye {
            return Ok(());
        }
        if out.is_empty() && is_taken {
            link.write(&mut out);
            must_flush |= !out.is_empty();
        }
        if !out.is_empty() && !is_asking {
            // From now on it is looked at more often.
            (is_asking, has_heard, silent) = (true, true, 0);
            look = own.clock.sleep(LOOK);
        }
        tokio::select! { biased;
            written = write_some(&mut writer, &mut out, &mut must_flush), if must_flush && is_taken => is_taken = written.is_ok(),
            read = read_some(&mut reader, &mut incoming) => {
                if read? == 0 {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other host has closed the link"));
                }
                has_heard = true;
            }
            () = link.wake.notified(), if out.is_empty() => {}
            () = &mut look => {
                if link.has_no_use() {
                    return Err(io::Error::other("the host is at another address by now"));
                }
                silent = if has_heard { 0 } else { silent + 1 };
                if silent >= SILENT_LOOKS {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the other host says nothing any more"));
                }
                // What has been heard was before this; a sign of life has until the next look but one.
                has_heard = false;
                put(&mut out, Kind::Ping, 0, &[]);
                must_flush = true;
                is_asking = !link.is_idle();
                look = own.clock.sleep(if is_asking { LOOK } else { LOOK_IDLE });
            }
        }
    }
}
