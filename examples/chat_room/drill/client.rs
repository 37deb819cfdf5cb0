//! A member of a room, as a program: joins, comes back whenever it is cut off, and loses nothing on the way.
//!
//! A text is its own until the entry comes back; what has not come back is said again after every return, under the same
//! tag, so that it counts once.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use reqwest::Url;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::protocol::{Entry, Event, Request, Welcome, What};

/// The limit for a host to welcome a client.
const PATIENCE: Duration = Duration::from_secs(5);
/// The time between two attempts to come back.
const AGAIN: Duration = Duration::from_millis(100);

/// The place of a member, with what it has seen and said.
#[derive(Debug)]
pub(crate) struct Member {
    server: SocketAddr,
    room: String,
    pub(crate) name: String,
    /// The last entry it has seen.
    last: Option<u64>,
    /// The texts it has said and not seen yet, oldest first.
    pending: VecDeque<(u64, String)>,
    receive_buffer: Option<u32>,
    link: Option<Link>,
}

#[derive(Debug)]
struct Link {
    socket: WebSocketStream<TcpStream>,
    /// The next time to say that it is still here, and the time between.
    here: Instant,
    every: Duration,
}

/// Something that a member learns.
#[derive(Debug)]
pub(crate) enum News {
    /// The client is in the room, with others; it has missed so many entries for ever.
    In {
        members: Vec<String>,
        missed: u64,
    },
    Entry(Entry),
    /// The client was cut off, and why.
    Out(String),
    /// The client was not let in, and why.
    Refused(String),
}

impl Member {
    pub(crate) fn new(server: SocketAddr, room: &str, name: &str) -> Member {
        Member {
            server,
            room: room.to_owned(),
            name: name.to_owned(),
            last: None,
            pending: VecDeque::new(),
            receive_buffer: None,
            link: None,
        }
    }

    /// Sets how many bytes the kernel takes from the host before this member reads them.
    pub(crate) fn receive_buffer(mut self, bytes: u32) -> Member {
        self.receive_buffer = Some(bytes);
        self
    }

    /// Counts what it has said and not seen come back.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Joins, and returns what is new to it. Tries until it succeeds or is refused.
    pub(crate) async fn join(&mut self) -> Vec<News> {
        self.link = None;
        loop {
            match timeout(PATIENCE, self.try_join()).await {
                Ok(Ok(news)) => return news,
                Ok(Err(End { refused: true, reason })) => return vec![News::Refused(reason)],
                Ok(Err(_)) | Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    async fn try_join(&mut self) -> Result<Vec<News>, End> {
        let socket = if self.server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let stream = socket.connect(self.server).await?;
        // What is said is small, and should leave at once.
        stream.set_nodelay(true)?;
        let (mut socket, _) = tokio_tungstenite::client_async(self.url().as_str(), stream).await?;
        let Event::Welcome(welcome) = next(&mut socket).await? else {
            return Err(End::because("the host did not say welcome"));
        };
        let Welcome { members, history, missed, gone_after_ms, .. } = welcome;
        let every = Duration::from_millis(gone_after_ms / 3).max(Duration::from_millis(1));
        let mut news = vec![News::In { members, missed }];
        news.extend(history.into_iter().map(|entry| self.note(entry)));
        self.link = Some(Link { socket, here: Instant::now() + every, every });
        self.insist().await;
        Ok(news)
    }

    fn url(&self) -> Url {
        let mut url = Url::parse(&format!("ws://{}", self.server)).expect("an address makes a URL");
        url.set_path("chat");
        url.query_pairs_mut().append_pair("room", &self.room).append_pair("name", &self.name);
        if let Some(last) = self.last {
            url.query_pairs_mut().append_pair("after", &last.to_string());
        }
        url
    }

    /// Says something. If that fails, it is said again after the next [`join`](Self::join).
    pub(crate) async fn say(&mut self, tag: u64, text: String) {
        self.pending.push_back((tag, text.clone()));
        self.send(&Request::Say { tag, text }).await;
    }

    /// Says again whatever it has not seen come back.
    pub(crate) async fn insist(&mut self) {
        for (tag, text) in self.pending.clone() {
            self.send(&Request::Say { tag, text }).await;
        }
    }

    pub(crate) async fn leave(&mut self) {
        self.send(&Request::Leave).await;
    }

    /// A failure to send shows in [`next`](Self::next), behind what was received before.
    async fn send(&mut self, request: &Request) {
        if let Some(link) = &mut self.link
            && let Ok(text) = serde_json::to_string(request)
        {
            let _ = link.socket.send(Message::text(text)).await;
        }
    }

    /// The next thing it learns. After [`News::Out`] it has to [`join`](Self::join) again. Cancel-safe.
    pub(crate) async fn next(&mut self) -> News {
        loop {
            let Some(Link { socket, here, every }) = &mut self.link else {
                return News::Out("not in the room".to_owned());
            };
            let event = tokio::select! { biased;
                event = next(socket) => event,
                () = sleep_until(*here) => {
                    *here += *every;
                    self.send(&Request::Here).await;
                    continue;
                }
            };
            match event {
                Ok(Event::Entry(entry)) => return self.note(entry),
                Ok(Event::Welcome(_)) => {}
                Err(end) => {
                    self.link = None;
                    return News::Out(end.reason);
                }
            }
        }
    }

    /// Stays in the room for a while without reading.
    pub(crate) async fn look_away(&mut self, end: impl Future) {
        let mut end = std::pin::pin!(end);
        while let Some(Link { here, every, .. }) = &mut self.link {
            tokio::select! { biased;
                _ = &mut end => return,
                () = sleep_until(*here) => {
                    *here += *every;
                    self.send(&Request::Here).await;
                }
            }
        }
    }

    fn note(&mut self, entry: Entry) -> News {
        self.last = Some(entry.number);
        if let What::Said { tag, .. } = entry.what
            && entry.who == self.name
        {
            self.pending.retain(|(pending, _)| *pending != tag);
        }
        News::Entry(entry)
    }
}

/// The reason for which a WebSocket has ended.
#[derive(Debug)]
struct End {
    /// Says that there is no use in trying again.
    refused: bool,
    reason: String,
}

impl End {
    fn because(reason: impl ToString) -> End {
        End { refused: false, reason: reason.to_string() }
    }
}

impl From<Error> for End {
    fn from(error: Error) -> End {
        End::because(error)
    }
}

impl From<std::io::Error> for End {
    fn from(error: std::io::Error) -> End {
        End::because(error)
    }
}

async fn next(socket: &mut WebSocketStream<TcpStream>) -> Result<Event, End> {
    while let Some(message) = socket.next().await {
        match message? {
            Message::Text(text) => return serde_json::from_str(&text).map_err(End::because),
            Message::Close(Some(frame)) => {
                // The answer to it is queued; this sends it.
                let _ = socket.flush().await;
                return Err(End { refused: frame.code == CloseCode::Policy, reason: frame.reason.to_string() });
            }
            Message::Close(None) => break,
            _ => {}
        }
    }
    Err(End::because("cut off"))
}
