//! A proxy in front of a server that sees the statements of the application's transactions, and may lose any of them or its
//! answer.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// A part that a client sends at once and waits for: one simple query, or everything up to a Sync.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    /// The place of a statement on its connection, counted from the BEGIN of an application's transaction, which is number 1.
    pub(crate) number: usize,
    /// The text of the statement, if it has one.
    pub(crate) text: String,
}

/// The fate of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Forward,
    /// The statement is lost, and the connection with it, on both sides.
    Lose,
    /// The server gets and answers it; the answer is lost, and the connection with it.
    LoseAnswer,
    /// The statement is lost, and nobody is told: both sides keep their connections.
    Swallow,
}

/// Decides about each statement of an application's transaction.
type Judge = Arc<dyn Fn(&Statement) -> Verdict + Send + Sync>;

/// A proxy in front of the server on `port`; returns its own port. It lives as long as the runtime.
pub(crate) async fn start(port: u16, judge: impl Fn(&Statement) -> Verdict + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port is free");
    let own = listener.local_addr().expect("it is bound").port();
    let judge: Judge = Arc::new(judge);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
            client.set_nodelay(true).expect("an open socket");
            tokio::spawn(relay(client, server, judge.clone()));
        }
    });
    own
}

async fn relay(client: TcpStream, server: TcpStream, judge: Judge) {
    let (from_client, mut to_client) = client.into_split();
    let (mut from_server, to_server) = server.into_split();
    let answers = async { tokio::io::copy(&mut from_server, &mut to_client).await };
    let ended = tokio::select! {
        ended = requests(from_client, to_server, judge) => ended,
        _ = answers => return,
    };
    match ended {
        Ended::Closed | Ended::Lost => {}
        Ended::AnswerLost(_to_server) => {
            let _ = from_server.read(&mut [0; 1024]).await;
        }
        Ended::Swallowed(_to_server) => {
            // Until the server has had enough of it.
            let _ = from_server.read(&mut [0; 1024]).await;
        }
    }
}

enum Ended {
    Closed,
    Lost,
    AnswerLost(OwnedWriteHalf),
    Swallowed(OwnedWriteHalf),
}

async fn requests(mut client: OwnedReadHalf, mut server: OwnedWriteHalf, judge: Judge) -> Ended {
    let (mut number, mut pending) = (0, Vec::new());
    let mut is_first = true;
    loop {
        let Some((kind, message)) = message(&mut client, is_first).await else { return Ended::Closed };
        is_first = false;
        pending.extend_from_slice(&message);
        // Everything before a Sync belongs to it.
        if matches!(kind, b'P' | b'B' | b'D' | b'E' | b'C' | b'H') {
            continue;
        }
        let text = String::from_utf8_lossy(&pending).into_owned();
        if kind == b'Q' && text.contains("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE") {
            number = 1;
        }
        let verdict = if number > 0 && matches!(kind, b'Q' | b'S') {
            let verdict = judge(&Statement { number, text });
            number += 1;
            verdict
        } else {
            Verdict::Forward
        };
        match verdict {
            Verdict::Lose => return Ended::Lost,
            Verdict::Swallow => return Ended::Swallowed(server),
            Verdict::Forward | Verdict::LoseAnswer => {
                if server.write_all(&pending).await.is_err() {
                    return Ended::Closed;
                }
                pending.clear();
                if verdict == Verdict::LoseAnswer {
                    return Ended::AnswerLost(server);
                }
            }
        }
    }
}

/// One message of the frontend protocol; the first has no kind.
async fn message(client: &mut OwnedReadHalf, is_first: bool) -> Option<(u8, Vec<u8>)> {
    let mut bytes = vec![0; if is_first { 4 } else { 5 }];
    client.read_exact(&mut bytes).await.ok()?;
    let length = u32::from_be_bytes(bytes[bytes.len() - 4..].try_into().expect("four bytes"));
    let kind = if is_first { 0 } else { bytes[0] };
    let head = bytes.len();
    bytes.resize(head + usize::try_from(length).ok()?.checked_sub(4)?, 0);
    client.read_exact(&mut bytes[head..]).await.ok()?;
    Some((kind, bytes))
}
