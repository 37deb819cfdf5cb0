//! Frames as one would write them for nothing but this: a length, a number and JSON, on one connection; what has queued is written at once. Nothing
//! has a limit, a deadline or an error, and who asks waits for ever if the other side is gone.
//!
//! Requests are answered where they are read, which is the limit of all; or each on a task of its own, which is the limit of what serves handlers that
//! wait.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};

use super::{Add, Count, Counted, Link};

/// The room for what is read at once.
const READ: usize = 32 * 1024;

/// The end that asks.
#[derive(Debug, Clone)]
pub struct ByHand(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    out: BytesMut,
    next: u64,
    asked: HashMap<u64, oneshot::Sender<Bytes>>,
}

fn put(out: &mut BytesMut, number: u64, body: &[u8]) {
    out.reserve(12 + body.len());
    out.put_u32(u32::try_from(body.len()).expect("a message is short"));
    out.put_u64(number);
    out.put_slice(body);
}

/// The next frame, if all of it is there.
fn take(incoming: &mut BytesMut) -> Option<(u64, Bytes)> {
    let length = usize::try_from(u32::from_be_bytes(*incoming.first_chunk()?)).expect("it fits into memory");
    if incoming.len() < 12 + length {
        return None;
    }
    incoming.advance(4);
    let number = incoming.get_u64();
    Some((number, incoming.split_to(length).freeze()))
}

/// Answers whoever calls, for ever; each request on a task of its own, if `by_tasks`.
pub async fn serve(listener: TcpListener, by_tasks: bool) {
    let count = Count::default();
    loop {
        let (stream, _) = listener.accept().await.expect("a connection can be taken");
        match by_tasks {
            true => drop(tokio::spawn(answer_by_tasks(stream, count.clone()))),
            false => drop(tokio::spawn(answer(stream, count.clone()))),
        }
    }
}

async fn answer(mut stream: TcpStream, count: Count) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut incoming, mut out) = (BytesMut::new(), BytesMut::new());
    loop {
        incoming.reserve(READ);
        if stream.read_buf(&mut incoming).await? == 0 {
            return Ok(());
        }
        while let Some((number, body)) = take(&mut incoming) {
            put(&mut out, number, &count.add_json(&body));
        }
        stream.write_all_buf(&mut out).await?;
    }
}

async fn answer_by_tasks(stream: TcpStream, count: Count) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, writer) = stream.into_split();
    let shared = Arc::<Shared>::default();
    tokio::spawn(write(writer, shared.clone()));
    let mut incoming = BytesMut::new();
    loop {
        incoming.reserve(READ);
        if reader.read_buf(&mut incoming).await? == 0 {
            return Ok(());
        }
        while let Some((number, body)) = take(&mut incoming) {
            let (shared, count) = (shared.clone(), count.clone());
            tokio::spawn(async move {
                let answer = count.add_json(&body);
                put(&mut shared.state().out, number, &answer);
                shared.wake.notify_one();
            });
        }
    }
}

impl ByHand {
    /// Calls.
    ///
    /// # Panics
    /// If nobody is there.
    pub async fn connect(address: &str) -> ByHand {
        let stream = TcpStream::connect(address).await.expect("the other side listens");
        stream.set_nodelay(true).expect("a socket has this option");
        let (mut reader, writer) = stream.into_split();
        let shared = Arc::<Shared>::default();
        tokio::spawn(write(writer, shared.clone()));
        let heard = shared.clone();
        tokio::spawn(async move {
            let mut incoming = BytesMut::with_capacity(READ);
            while reader.read_buf(&mut incoming).await.is_ok_and(|bytes| bytes > 0) {
                let mut state = heard.state();
                while let Some((number, body)) = take(&mut incoming) {
                    if let Some(asked) = state.asked.remove(&number) {
                        drop(asked.send(body));
                    }
                }
                drop(state);
                incoming.reserve(READ);
            }
        });
        ByHand(shared)
    }
}

async fn write(mut writer: OwnedWriteHalf, shared: Arc<Shared>) -> io::Result<()> {
    let mut out = BytesMut::new();
    loop {
        shared.wake.notified().await;
        std::mem::swap(&mut out, &mut shared.state().out);
        writer.write_all_buf(&mut out).await?;
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link for ByHand {
    async fn ask(&self, caller: usize) -> u64 {
        let body = serde_json::to_vec(&Add::of(caller)).expect("the message can be written");
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.0.state();
            let number = state.next;
            state.next += 1;
            state.asked.insert(number, answer);
            put(&mut state.out, number, &body);
        }
        self.0.wake.notify_one();
        let reply = answered.await.expect("the other side is there");
        serde_json::from_slice::<Counted>(&reply).expect("the reply is one").count
    }
}
