//! Over real connections: what a server makes of bodies that never end, and of streams when it is to stop.

use std::future::IntoFuture as _;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use callback_flows::{Flow, Flows};
use serde_json::Value;
use stable_interfaces::{Host, MemoryStore};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use crate::app::{Seen, Telling};

/// So long a machine that is busy with other things may take.
const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// A server that stops when its host begins to leave.
async fn serve() -> (Host, Flows, SocketAddr, JoinHandle<std::io::Result<()>>) {
    let mut host = Host::local(MemoryStore::new());
    let waits = |flow: Flow, _: Value| async move {
        let mut word = flow.callback::<Value>("word");
        Ok(word.next().await?)
    };
    let flows = Flows::builder().flow("order", 1, waits).register(&mut host).unwrap();
    let host = host.start().await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().nest("/flows", flows.router());
    let served = axum::serve(listener, app).with_graceful_shutdown(host.stopping());
    (host, flows, address, tokio::spawn(served.into_future()))
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it ends")
}

#[tokio::test]
async fn half_a_chunked_body_starts_nothing() {
    let (host, flows, address, server) = serve().await;
    let head = "PUT /flows/order/17 HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    // In the middle of a chunk, between two, and within what could be all of it.
    for half in ["8\r\n{\"a\"", "4\r\n{\"a\"\r\n", "2\r\n{}\r\n"] {
        let mut connection = TcpStream::connect(address).await.unwrap();
        connection.write_all(format!("{head}{half}").as_bytes()).await.unwrap();
        connection.shutdown().await.unwrap();
        let mut answer = String::new();
        // It may be refused, or just be over.
        let _ = in_time(connection.read_to_string(&mut answer)).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    assert!(flows.get("order", "17").await.unwrap().is_none());
    in_time(host.drain(Duration::from_secs(1))).await;
    in_time(server).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stream_that_is_open_does_not_keep_a_server_from_stopping() {
    let (host, flows, address, server) = serve().await;
    flows.start("order", "17", &Value::Null).await.unwrap();
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.write_all(b"GET /flows/order/17/events HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut lines = BufReader::new(connection).lines();
    let mut retries = 0;
    in_time(async {
        // The beginning of the stream is there before its first event.
        while retries == 0 {
            let line = lines.next_line().await.unwrap().unwrap();
            retries += usize::from(line.starts_with("retry: "));
        }
        host.drain(Duration::from_secs(1)).await;
        while let Some(line) = lines.next_line().await.unwrap() {
            retries += usize::from(line.starts_with("retry: "));
        }
    })
    .await;
    assert_eq!(retries, 2, "it is told to come back");
    in_time(server).await.unwrap().unwrap();
}

/// Reads a stream of events until it is over: the numbers of those that are whole.
async fn numbers(lines: &mut tokio::io::Lines<BufReader<TcpStream>>) -> Vec<u64> {
    let mut numbers = Vec::new();
    let (mut number, mut is_whole) = (None, false);
    while let Ok(Some(line)) = in_time(lines.next_line()).await {
        if let Some(id) = line.strip_prefix("id: ") {
            (number, is_whole) = (id.parse::<u64>().ok(), false);
        }
        is_whole |= line.starts_with("data: ");
        if line.is_empty() && is_whole {
            numbers.extend(number.take());
        }
    }
    numbers
}

#[tokio::test]
async fn a_reader_that_stops_is_held_in_bounds_then_ended_and_goes_on_without_a_gap_or_a_repeat() {
    // Together more than a connection takes that nobody reads from.
    const EVENTS: u32 = 300;
    let world = Seen::default().world();
    let kept = world.builder().retention(HOUR, HOUR);
    let app = world.start(Host::local(world.store.clone()), kept).await;
    let input = Telling { events: EVENTS, bytes: 31_000, fails: false };
    let last = u64::from(EVENTS) + 1;
    tokio::time::pause();
    app.flows.start("telling", "1", &input).await.unwrap();
    app.flows.ended("telling", "1").await.unwrap();
    tokio::time::resume();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(axum::serve(listener, app.router.clone()).into_future());
    let mut had: Vec<u64> = Vec::new();
    let (mut pauses, mut empty) = (0, 0);
    while had.last() != Some(&last) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 * 1_024).unwrap();
        let mut connection = socket.connect(address).await.unwrap();
        let after = had.last().copied().unwrap_or_default();
        let request = format!(
            "GET /flows/telling/1/events HTTP/1.1\r\nhost: a\r\nconnection: close\r\nlast-event-id: {after}\r\n\r\n"
        );
        connection.write_all(request.as_bytes()).await.unwrap();
        // Until nothing has been read for it for a while, which is when all is full.
        let mut begun = world.store.begun();
        in_time(async {
            loop {
                tokio::time::sleep(Duration::from_millis(200)).await;
                let now = world.store.begun();
                if now == begun {
                    break;
                }
                begun = now;
            }
        })
        .await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(31)).await;
        tokio::time::resume();
        let more = numbers(&mut BufReader::new(connection).lines()).await;
        // The machine may have had no time for it yet.
        if more.is_empty() && empty < 20 {
            empty += 1;
            continue;
        }
        assert_eq!(more.first(), Some(&(after + 1)), "the event behind the last one is next");
        pauses += usize::from(more.last() != Some(&last));
        had.extend(more);
    }
    assert_eq!(had, (1..=last).collect::<Vec<_>>());
    assert!(pauses > 0, "all of it went into the buffers of one connection");
    server.abort();
}
