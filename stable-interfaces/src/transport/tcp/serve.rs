//! The end of a link that was called: takes requests, and answers them.
//!
//! Requests that arrive together are begun together, on a task of its own: so a handler that blocks its thread holds up what came with
//! it, and not the link. Whoever has not said a right first word is one of few, and of those who have the idle make room for the rest; frames have a limit
//! of time, and links of silence; of a link whose answers nobody takes no more is read.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use super::frame::{Assembly, Frames, Kind, Outbox, put, read_some, write_some};
use super::hello::{HELLO_TIMEOUT, Hello, Wire, answer, in_time};
use super::room::{Room, Seat};
use super::tls::is_made_out_to;
use super::{Closing, Options};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, watch};
use crate::transport::{Answering, Door, Introduction};

/// The most that have called and not been greeted. Past it, the one that has waited longest has to go.
const MAX_STRANGERS: usize = 256;
/// The most links that are open. Past it, somebody [has to go](Room).
const MAX_GUESTS: usize = if cfg!(test) { 64 } else { 4_096 };
/// The time between two looks at a link.
const LOOK: Duration = Duration::from_secs(5);
/// After so many looks at which nothing was heard a link is over: who calls asks for signs of life more often.
const SILENT_LOOKS: u32 = 6;
/// The most requests of one link that are being answered. Past it, no more of it are read. More than one host has under way (see `reach.rs`), those
/// of its connections counted.
const MAX_REQUESTS: usize = 4 * 16_384;
/// The bytes of answers that wait to be written, and those of signs of life that are, from which on no more is read: whoever asks takes no answers. It is
/// no limit of memory: what is under way by then is answered, and waits with the rest.
const MAX_UNWRITTEN: usize = 16 * 1024 * 1024;
const MAX_WRITTEN_AT_ONCE: usize = 256 * 1024;
/// The longest time that a caller has to go after it was told goodbye; it goes as soon as it hears that.
const PARTING: Duration = Duration::from_millis(500);
/// The pause after a connection could not be taken.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// Hosts that have called.
#[derive(Debug, Clone)]
pub(super) struct Guests(Arc<Shared>);

struct Shared {
    own: Arc<Introduction>,
    options: Options,
    closing: watch::Sender<bool>,
    /// The number of links that are open.
    open: watch::Sender<usize>,
    room: Room,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guests").field("open", &*self.open.borrow()).finish_non_exhaustive()
    }
}

/// Counts one open link for as long as it is, and keeps its place.
struct Open(Arc<Shared>, Arc<Seat>);

impl Open {
    fn begin(shared: &Arc<Shared>, seat: Arc<Seat>) -> Open {
        shared.open.send_modify(|open| *open += 1);
        Open(shared.clone(), seat)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.room.give_back(&self.1);
        self.0.open.send_modify(|open| *open -= 1);
    }
}

impl Guests {
    pub(super) fn new(own: Arc<Introduction>, options: Options) -> Guests {
        let (closing, open) = (watch::Sender::new(false), watch::Sender::new(0));
        Guests(Arc::new(Shared { own, options, closing, open, room: Room::new(MAX_GUESTS) }))
    }

    /// Takes no more requests, and waits until those that were taken are answered and the answers written.
    pub(super) async fn close(&self) {
        self.0.closing.send_replace(true);
        self.until_empty().await;
    }

    /// Waits until no link is open.
    pub(super) async fn until_empty(&self) {
        // It cannot fail: the sender is at hand.
        drop(self.0.open.subscribe().wait_for(|open| *open == 0).await);
    }

    /// Lets callers in until it is to close; those who are in stay until they have been answered.
    pub(super) async fn receive(&self, listener: TcpListener, door: Arc<dyn Door>) {
        let mut guests = JoinSet::new();
        let mut strangers: VecDeque<(Arc<AtomicBool>, AbortHandle)> = VecDeque::new();
        let mut closing = self.0.closing.subscribe();
        let is_closing = async { drop(closing.wait_for(|is_closing| *is_closing).await) };
        let mut is_closing = std::pin::pin!(is_closing);
        loop {
            tokio::select! { biased;
                () = &mut is_closing => break,
                Some(_ended) = guests.join_next(), if !guests.is_empty() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        strangers.retain(|(is_greeted, task)| !is_greeted.load(Ordering::Acquire) && !task.is_finished());
                        if strangers.len() >= MAX_STRANGERS
                            && let Some((_, oldest)) = strangers.pop_front()
                        {
                            oldest.abort();
                        }
                        let is_greeted = Arc::<AtomicBool>::default();
                        let guest = guest(stream, self.0.clone(), door.clone(), is_greeted.clone());
                        strangers.push_back((is_greeted, guests.spawn(guest)));
                    }
                    Err(error) => {
                        // Too many open files, say.
                        tracing::warn!(host = %self.0.own.host, %error, "a connection could not be taken");
                        self.0.own.clock.sleep(AFTER_FAILURE).await;
                    }
                },
            }
        }
        drop(listener);
        while guests.join_next().await.is_some() {}
        std::future::pending::<()>().await;
    }
}

/// Greets one who has called, and answers it.
async fn guest(stream: TcpStream, shared: Arc<Shared>, door: Arc<dyn Door>, is_greeted: Arc<AtomicBool>) {
    let own = &shared.own;
    let (mut frames, mut incoming) = (Frames::new(), BytesMut::new());
    let greeting = async {
        stream.set_nodelay(true)?;
        let (mut stream, certificate) = match &shared.options.tls {
            Some(tls) => tls.answer(stream).await?,
            None => (Box::new(stream) as Box<dyn Wire>, None),
        };
        let has_tls = shared.options.tls.is_some();
        // Looked at before the first word is made: what it says is what is checked.
        let is_told = own.store.get().is_some();
        let is_it = |name: &str| match has_tls {
            // It may be of another fleet than the caller's, and answers nothing before it knows.
            _ if !is_told => Err(format!("{:?} has not been told by its store yet of which fleet it is", own.host)),
            true => is_made_out_to(certificate.as_ref(), name),
            false => Ok(()),
        };
        let hello = Hello::new(own, shared.options.fleet.as_deref(), "");
        let hello = answer(&mut *stream, hello, is_it, &mut frames, &mut incoming).await?;
        Ok((stream, hello))
    };
    let (stream, hello) = match in_time(own, HELLO_TIMEOUT, greeting).await {
        Ok(greeted) => greeted,
        Err(error) => {
            tracing::warn!(host = %own.host, %error, "a caller was not let in");
            return;
        }
    };
    is_greeted.store(true, Ordering::Release);
    let Some(seat) = shared.room.take() else {
        tracing::warn!(host = %own.host, from = hello.host, "there are too many links already, and something is asked on each");
        return;
    };
    let answers = Arc::new(Answers { outbox: Mutex::default(), unwritten: AtomicUsize::new(0), seat: seat.clone() });
    let _open = Open::begin(&shared, seat);
    let closing = shared.closing.subscribe();
    if let Err(error) = talk(stream, frames, incoming, &door, own, answers, closing).await {
        tracing::debug!(host = %own.host, from = hello.host, %error, "a link has ended");
    }
}

/// The answers of one link.
#[derive(Debug)]
struct Answers {
    outbox: Mutex<Outbox>,
    /// The bytes that wait in there, as they were when it was last changed.
    unwritten: AtomicUsize,
    seat: Arc<Seat>,
}

impl Answers {
    fn answer(&self, answers: impl IntoIterator<Item = (u64, Bytes)>) {
        let mut outbox = self.outbox.lock();
        // What waits already is still to be written, and these with it.
        let is_awake = !outbox.is_empty();
        for (number, answer) in answers {
            outbox.push(number, answer);
            // Counted down once it waits to be written, so that it is always one or the other.
            self.seat.under_way.fetch_sub(1, Ordering::Release);
        }
        self.unwritten.store(outbox.bytes(), Ordering::Relaxed);
        let is_news = !is_awake && !outbox.is_empty();
        drop(outbox);
        if is_news {
            self.seat.wake.notify_one();
        }
    }

    /// Writes what waits.
    fn write(&self, out: &mut BytesMut) {
        let mut outbox = self.outbox.lock();
        outbox.write(out, |_| {});
        self.unwritten.store(outbox.bytes(), Ordering::Relaxed);
    }
}

/// Answers what has arrived together.
async fn answer_all(requests: Vec<(u64, Answering)>, answers: Arc<Answers>) {
    let (mut ready, mut waiting) = (Vec::with_capacity(requests.len()), FuturesUnordered::new());
    for (number, mut answering) in requests {
        // Most are done when they have begun, and need no place among those that wait.
        match poll_fn(|task| Poll::Ready(answering.as_mut().poll(task))).await {
            Poll::Ready(answer) => ready.push((number, answer)),
            Poll::Pending => waiting.push(async move { (number, answering.await) }),
        }
    }
    answers.answer(ready.drain(..));
    while let Some(answer) = waiting.next().await {
        ready.push(answer);
        // Whatever else is ready goes with it.
        while let Some(Some(answer)) = futures_util::FutureExt::now_or_never(waiting.next()) {
            ready.push(answer);
        }
        answers.answer(ready.drain(..));
    }
}

/// Reads, and leaves aside, what the caller sends until it has heard the goodbye. A connection that is closed with something unread is reset, and the
/// caller might lose the last words on it.
async fn until_it_ends(reader: &mut (impl AsyncRead + Unpin), rest: &mut BytesMut) -> io::Result<()> {
    loop {
        rest.clear();
        if read_some(reader, rest).await? == 0 {
            return Ok(());
        }
    }
}

async fn talk(
    stream: Box<dyn Wire>,
    mut frames: Frames,
    mut incoming: BytesMut,
    door: &Arc<dyn Door>,
    own: &Introduction,
    answers: Arc<Answers>,
    mut closing: Closing,
) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (mut out, mut assembly) = (BytesMut::new(), Assembly::default());
    let (seat, mut tasks) = (&*answers.seat, JoinSet::new());
    let (mut must_flush, mut has_heard, mut has_written, mut taken_before) = (false, true, true, None);
    let (mut silent, mut overdue) = (0, 0);
    let mut look = own.clock.sleep(LOOK);
    let mut is_closing = *closing.borrow_and_update();
    loop {
        // Looked at now and then, so that none of them wakes this task when it ends.
        while let Some(ended) = tasks.try_join_next() {
            ended.map_err(io::Error::other)?;
        }
        is_closing |= seat.has_to_go();
        let mut arrived = Vec::new();
        while let Some(frame) = frames.next(&mut incoming)? {
            let number = frame.number;
            match frame.kind {
                // What comes after that is not taken.
                Kind::Part | Kind::Last if !is_closing => {
                    if let Some(request) = assembly.add(frame)? {
                        arrived.push((number, door.answer(request)));
                    }
                }
                Kind::Ping => {
                    put(&mut out, Kind::Pong, number, &[]);
                    must_flush = true;
                }
                _ => {}
            }
        }
        if !arrived.is_empty() {
            seat.takes(arrived.len());
            tasks.spawn(answer_all(arrived, answers.clone()));
        }
        let under_way = seat.under_way.load(Ordering::Acquire);
        if out.is_empty() {
            answers.write(&mut out);
            must_flush |= !out.is_empty();
        }
        if is_closing && under_way == 0 && out.is_empty() {
            // All that was taken is answered.
            put(&mut out, Kind::Goodbye, 0, &[]);
            let goodbye = async {
                writer.write_all(&out).await?;
                writer.shutdown().await
            };
            // Whoever takes no answers may not take that either: it has the time between two looks.
            in_time(own, LOOK, goodbye).await?;
            return in_time(own, PARTING, until_it_ends(&mut reader, &mut incoming)).await;
        }
        let has_room = out.len() < MAX_WRITTEN_AT_ONCE && answers.unwritten.load(Ordering::Relaxed) < MAX_UNWRITTEN;
        // Also while it closes: the caller asks for signs of life.
        let is_reading = under_way < MAX_REQUESTS && has_room;
        tokio::select! { biased;
            written = write_some(&mut writer, &mut out, &mut must_flush), if must_flush => {
                written?;
                has_written = true;
            }
            read = read_some(&mut reader, &mut incoming), if is_reading => {
                if read? == 0 {
                    return Ok(());
                }
                has_heard = true;
            }
            () = seat.wake.notified(), if out.is_empty() => {}
            changed = closing.changed(), if !is_closing => is_closing = changed.is_err() || *closing.borrow(),
            () = &mut look => {
                seat.is_looked_at();
                // Whoever is not listened to is not silent, but whoever takes no answers is.
                silent = if has_heard || (!is_reading && (out.is_empty() || has_written)) { 0 } else { silent + 1 };
                let is_incomplete = is_reading && !is_closing && (!incoming.is_empty() || !assembly.is_empty());
                if silent >= SILENT_LOOKS {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the caller says nothing any more"));
                }
                overdue = if seat.has_to_go() && under_way == 0 { overdue + 1 } else { 0 };
                // As long as the last answers are being taken it may stay, but not for as long as it likes.
                if overdue > 0 && (!has_written || overdue >= SILENT_LOOKS) {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "another caller has its place, and its last answers are not taken"));
                }
                if is_incomplete && taken_before == Some(frames.taken) {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "a frame was begun and not ended"));
                }
                taken_before = is_incomplete.then_some(frames.taken);
                (has_heard, has_written) = (false, false);
                look = own.clock.sleep(LOOK);
            }
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;
