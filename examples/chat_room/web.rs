//! The rooms on the web: a page, and a WebSocket per client.
//!
//! A WebSocket is one connection to a room's instance, and both halves of it run side by side, so that a client that does not
//! read can still be heard. What it has not read waits in the room's own bounded buffer, not here and not in the kernel; and
//! whoever is let go gets everything it was sent before, then the reason.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};
use std::{io, process};

use alarm_backends::FjallStore;
use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use examples::http;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use stable_interfaces::{Closed, Connection, ContextError, Host, Interface, RequestError, Timestamp};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::error::ProtocolError;

use crate::protocol::{Hello, LEFT, MAX_TEXT, Request};
use crate::room::{Presence, Room};

const PAGE: &str = include_str!("page.html");
/// The most clients at once. Each may have up to a room's buffer of messages, and the kernel's below, waiting for it.
const CLIENTS: usize = 10_000;
/// The bytes that the kernel keeps for a client that does not read; it may round that up.
const SEND_BUFFER: u32 = 64 * 1024;
/// The largest message read from a client, in bytes: a text, each of its characters escaped as JSON allows.
const MAX_MESSAGE: usize = 6 * MAX_TEXT + 1024;
/// The limit for a client to read one message.
const STALLED: Duration = Duration::from_secs(30);
/// The limit for a client to answer that its WebSocket is closed, and to read what it was sent before.
const FAREWELL: Duration = Duration::from_secs(10);
/// The limit for all clients together when the program stops.
const FAREWELL_TO_ALL: Duration = Duration::from_secs(3);
/// The time that a client which has broken the protocol has to read why.
const LAST_LOOK: Duration = Duration::from_secs(1);
/// The longest reason that fits into a frame of the protocol (RFC 6455, section 5.5), in bytes.
const MAX_REASON: usize = 123;

#[derive(Debug, Clone)]
struct Chat {
    rooms: Interface<Room>,
    /// Every session holds one of these; when the last is gone, so are they all.
    session: mpsc::Sender<Infallible>,
}

/// Serves rooms that are kept in `data` until `stop` completes; then says goodbye to everyone and gives the store back.
///
/// # Errors
/// One that names what could not be had, or [`Ended`](stable_interfaces::Ended) of a host that ended by itself: the process is to
/// be started anew.
pub(crate) async fn serve(listen: SocketAddr, data: &Path, gone_after: Duration, stop: impl Future) -> Result<()> {
    let listener = bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    let address = listener.local_addr()?;
    let store = FjallStore::open(data).with_context(|| format!("cannot open {}", data.display()))?;
    let presence = Presence { gone_after, listening_since: Timestamp::from(SystemTime::now()) };
    let mut host = Host::local(store).max_connections(CLIENTS);
    let rooms = host.interface(move |_id| Room::new(presence)).with_alarms().register()?;
    let host = host.start().await.context("cannot start the host")?;

    println!("listening on http://{address}/");
    println!(
        "  Open it in two browser tabs. Rooms are kept in {}. Kill this process (kill -9 {})",
        data.display(),
        process::id()
    );
    println!(
        "  and start it again: nothing that anyone has seen is lost, and who does not come back is announced as gone."
    );

    let (session, mut sessions) = mpsc::channel(1);
    let serve = http::serve(listener, routes(Chat { rooms, session }), host.stopping());
    let ((), ended) = tokio::join!(serve, host.run_until(stop));
    let _ = timeout(FAREWELL_TO_ALL, sessions.recv()).await;
    Ok(ended.map(drop)?)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // So that a host that is started again need not wait for its old connections to be forgotten.
    socket.set_reuseaddr(true)?;
    // Every connection inherits it.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(1024)
}

fn routes(chat: Chat) -> Router {
    Router::new().route("/", get(Html(PAGE))).route("/chat", get(enter)).with_state(chat)
}

/// The room that a client wants. Not in the path: there a room called `..` would not arrive.
#[derive(Debug, Deserialize)]
struct Door {
    room: String,
}

async fn enter(
    State(chat): State<Chat>,
    Query(Door { room }): Query<Door>,
    Query(hello): Query<Hello>,
    headers: HeaderMap,
    socket: WebSocketUpgrade,
) -> Response {
    if !is_same_origin(&headers) {
        return (StatusCode::FORBIDDEN, "another site's page may not talk here\n").into_response();
    }
    socket.max_frame_size(MAX_MESSAGE).max_message_size(MAX_MESSAGE).on_upgrade(async move |socket| {
        let Chat { rooms, session } = chat;
        talk(socket, &rooms, &room, hello).await;
        drop(session);
    })
}

/// Browsers let any page open a WebSocket to any address, but they say whose page it is.
fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text(header::ORIGIN) {
        Some(origin) => origin.split_once("://").map(|(_, host)| host) == text(header::HOST),
        // Not a browser.
        None => !headers.contains_key(header::ORIGIN),
    }
}

/// One client, from its first frame to its last.
async fn talk(socket: WebSocket, rooms: &Interface<Room>, room: &str, hello: Hello) {
    let (mut sink, mut stream) = socket.split();
    let goodbye = match rooms.connect(room, hello).await {
        Err(error) => refusal(error),
        Ok(connection) => {
            let end = tokio::select! { biased;
                end = write(&connection, &mut sink) => end,
                end = read(&connection, &mut stream) => end,
            };
            match end {
                End::Frame(goodbye) => goodbye,
                End::Broken(goodbye) => {
                    // What else it sends makes no sense any more, so nothing tells when it has read this.
                    let goodbye = sink.send(Message::Close(Some(goodbye)));
                    if let Ok(Ok(())) = timeout(FAREWELL, goodbye).await {
                        sleep(LAST_LOOK).await;
                    }
                    return;
                }
                End::NobodyThere => return,
            }
        }
    };
    // To close a socket with something unread in it would take back what the client has not read yet.
    let _ = timeout(FAREWELL, async {
        if sink.send(Message::Close(Some(goodbye))).await.is_ok() {
            while let Some(Ok(_)) = stream.next().await {}
        }
    })
    .await;
}

/// The end of a session.
#[derive(Debug)]
enum End {
    /// The client is told so.
    Frame(CloseFrame),
    /// The client has broken the protocol, and is told so.
    Broken(CloseFrame),
    /// The client has closed it, or is out of reach.
    NobodyThere,
}

/// Passes on what the room sends, as fast as the client reads.
async fn write(connection: &Connection<Room>, sink: &mut SplitSink<WebSocket, Message>) -> End {
    loop {
        match connection.recv().await {
            Ok(event) => match timeout(STALLED, sink.send(Message::text(&*event))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return End::NobodyThere,
            },
            Err(Closed::ByInstance(reason)) if reason == LEFT => return End::Frame(frame(close_code::NORMAL, &reason)),
            Err(Closed::ByInstance(reason)) => return End::Frame(frame(close_code::AGAIN, &reason)),
            Err(closed) => return End::Frame(frame(close_code::AGAIN, &closed.to_string())),
        }
    }
}

/// Passes on what the client sends, as fast as the room takes it.
async fn read(connection: &Connection<Room>, stream: &mut SplitStream<WebSocket>) -> End {
    let wrong = |what: &str| End::Frame(frame(close_code::POLICY, what));
    while let Some(message) = stream.next().await {
        let request = match message {
            Ok(Message::Text(text)) => match serde_json::from_str(&text) {
                Ok(Request::Say { text, .. }) if text.len() > MAX_TEXT => {
                    return wrong(&format!("a text may have at most {MAX_TEXT} bytes"));
                }
                Ok(request) => request,
                Err(_) => return wrong("that is no request"),
            },
            Ok(Message::Binary(_)) => return wrong("that is no request"),
            Ok(Message::Ping(_) | Message::Pong(_)) => continue,
            Ok(Message::Close(_)) => break,
            Err(error) => return breach(error).map_or(End::NobodyThere, End::Broken),
        };
        if connection.send(request).await.is_err() {
            // Closed; but what was sent before that has still to reach the client, and `write` ends when it has.
            std::future::pending::<()>().await;
        }
    }
    End::NobodyThere
}

/// Tells a client that it has broken the protocol (RFC 6455, section 7.4.1), if that is what has gone wrong.
fn breach(error: axum::Error) -> Option<CloseFrame> {
    let error = error.into_inner().downcast::<tungstenite::Error>().ok()?;
    let code = match *error {
        tungstenite::Error::Utf8(_) => close_code::INVALID,
        tungstenite::Error::Capacity(_) => close_code::SIZE,
        // It has gone away in the middle.
        tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => return None,
        tungstenite::Error::Protocol(_) => close_code::PROTOCOL,
        _ => return None,
    };
    Some(frame(code, &error.to_string()))
}

/// Tells a client why it cannot connect. With "policy" there is no use in trying again.
fn refusal(error: RequestError<ContextError>) -> CloseFrame {
    match error {
        RequestError::Rejected(reason) => frame(close_code::POLICY, &reason),
        RequestError::InvalidId { .. } => frame(close_code::POLICY, &error.report()),
        _ => frame(close_code::AGAIN, &error.report()),
    }
}

fn frame(code: u16, reason: &str) -> CloseFrame {
    CloseFrame { code, reason: reason[..reason.floor_char_boundary(MAX_REASON)].into() }
}

#[cfg(test)]
mod tests;
