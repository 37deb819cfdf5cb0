//! The end of a link that has called: asks, and hears the answers.
//!
//! A request waits in the link's outbox until a first byte of it is written; until then it was not sent. A link begins with its first request
//! and goes on until it fails; the next request then begins another one.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::Options;
use super::frame::{Assembly, Frames, Kind, Outbox, put, write_some};
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

/// The link to one host.
#[derive(Debug, Default)]
pub(super) struct Link {
    state: Mutex<State>,
    /// Told when there is something to write.
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Asked and not answered, by number.
    asked: HashMap<u64, Asked>,
    next: u64,
    outbox: Outbox,
    /// Says whether there is a task that sees to it.
    is_running: bool,
}

#[derive(Debug)]
struct Asked {
    answer: oneshot::Sender<Result<Bytes, Undelivered>>,
    is_sent: bool,
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
        let is_first = {
            let mut state = self.state.lock();
            let number = state.next;
            state.next += 1;
            state.asked.insert(number, Asked { answer, is_sent: false });
            state.outbox.push(number, request);
            !std::mem::replace(&mut state.is_running, true)
        };
        self.wake.notify_one();
        (answered, is_first)
    }

    /// Writes what waits.
    fn write(&self, out: &mut BytesMut) {
        let state = &mut *self.state.lock();
        let State { asked, outbox, .. } = state;
        outbox.write(out, |number| {
            if let Some(asked) = asked.get_mut(&number) {
                asked.is_sent = true;
            }
        });
    }

    fn is_idle(&self) -> bool {
        self.state.lock().asked.is_empty()
    }

    fn answered(&self, number: u64, answer: Bytes) {
        let asked = self.state.lock().asked.remove(&number);
        if let Some(asked) = asked {
            // Whoever has asked may have gone.
            drop(asked.answer.send(Ok(answer)));
        }
    }

    /// Ends it. `has_parted` says that the other host has taken nothing that it has not answered.
    fn end(&self, reason: &str, has_parted: bool) {
        let asked = {
            let mut state = self.state.lock();
            state.is_running = false;
            state.outbox = Outbox::default();
            std::mem::take(&mut state.asked)
        };
        for asked in asked.into_values() {
            let undelivered = if asked.is_sent && !has_parted { Undelivered::Unanswered } else { Undelivered::NotSent };
            drop(asked.answer.send(Err(undelivered(reason.into()))));
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

/// Carries what is asked until the other host has said its last word.
async fn talk(
    stream: Box<dyn Wire>,
    mut frames: Frames,
    mut incoming: BytesMut,
    link: &Link,
    own: &Introduction,
) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (mut out, mut assembly) = (BytesMut::new(), Assembly::default());
    let (mut must_flush, mut is_asking, mut has_heard, mut silent) = (false, false, true, 0);
    let mut look = own.clock.sleep(LOOK_IDLE);
    loop {
        while let Some(frame) = frames.next(&mut incoming)? {
            let number = frame.number;
            match frame.kind {
                Kind::Part | Kind::Last => {
                    if let Some(answer) = assembly.add(frame)? {
                        link.answered(number, answer);
                    }
                }
                Kind::Goodbye => return Ok(()),
                _ => {}
            }
        }
        if out.is_empty() {
            link.write(&mut out);
            must_flush |= !out.is_empty();
        }
        if !out.is_empty() && !is_asking {
            // From now on it is looked at more often.
            (is_asking, has_heard, silent) = (true, true, 0);
            look = own.clock.sleep(LOOK);
        }
        tokio::select! { biased;
            written = write_some(&mut writer, &mut out, &mut must_flush), if must_flush => written?,
            read = reader.read_buf(&mut incoming) => {
                if read? == 0 {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other host has closed the link"));
                }
                has_heard = true;
            }
            () = link.wake.notified(), if out.is_empty() => {}
            () = &mut look => {
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
