//! Tests of the limits in `http.rs`, which has no room for them: it is to be copied.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::http::{BODY, HEADER, PER_CLIENT, serve};

/// The limit of anything here: it is there so that a test that would wait for ever fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A service that answers and looks at nothing; it ends with the sender.
async fn service() -> (SocketAddr, oneshot::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let (stop, stopped) = oneshot::channel::<()>();
    let app = Router::new().route("/", get("yes").post("yes"));
    tokio::spawn(serve(listener, app, async move { drop(stopped.await) }));
    (address, stop)
}

async fn connect(from: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(format!("{from}:0").parse().expect("an address")).expect("an address of this machine");
    socket.connect(to).await.expect("it listens")
}

/// Whatever is answered until the connection ends.
async fn answer(mut stream: TcpStream, request: &[u8]) -> String {
    let mut answer = Vec::new();
    // Refused half-way, there may be nobody to write to any more.
    let _ = stream.write_all(request).await;
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it ends").expect("without a reset");
    String::from_utf8(answer).expect("text")
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn half_open_connections_of_one_client_leave_places_for_others() {
    let (address, _stop) = service().await;
    let mut half_open = Vec::new();
    for _ in 0..PER_CLIENT {
        let mut stream = connect("127.0.0.1", address).await;
        stream.write_all(b"GET / HT").await.expect("it reads");
        half_open.push(stream);
    }
    // In the order of their arrival, so the others are in by now: one more is closed at once.
    let mut refused = connect("127.0.0.1", address).await;
    let read = timeout(HEADER / 2, refused.read(&mut [0; 1])).await.expect("before the time for a header is over");
    assert!(!matches!(read, Ok(1..)), "{read:?}");
    let served = answer(connect("127.0.0.2", address).await, GET).await;
    assert!(served.starts_with("HTTP/1.1 200 "), "{served}");
    // Its own places are free again as its connections end.
    drop(half_open);
    let again = async {
        loop {
            let mut stream = connect("127.0.0.1", address).await;
            let mut first = [0; 12];
            if stream.write_all(GET).await.is_ok() && stream.read_exact(&mut first).await.is_ok() {
                return first;
            }
        }
    };
    assert_eq!(&timeout(PATIENCE, again).await.expect("it is let in"), b"HTTP/1.1 200");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_also_where_nobody_reads_it() {
    let (address, _stop) = service().await;
    let post = async |length: &str, body: &[u8]| {
        let mut request = format!("POST / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{length}\r\n\r\n").into_bytes();
        request.extend_from_slice(body);
        let answer = answer(connect("127.0.0.1", address).await, &request).await;
        answer.lines().next().unwrap_or_default().to_owned()
    };
    let plain = async |bytes: usize| post(&format!("content-length: {bytes}"), &vec![b'x'; bytes]).await;
    assert_eq!(plain(0).await, "HTTP/1.1 200 OK");
    assert_eq!(plain(BODY).await, "HTTP/1.1 200 OK");
    assert_eq!(plain(BODY + 1).await, "HTTP/1.1 413 Payload Too Large");
    assert_eq!(plain(7 * BODY).await, "HTTP/1.1 413 Payload Too Large");
    let mut chunked = format!("{:x}\r\n", BODY + 1).into_bytes();
    chunked.extend(vec![b'x'; BODY + 1]);
    chunked.extend(b"\r\n0\r\n\r\n");
    assert_eq!(post("transfer-encoding: chunked", &chunked).await, "HTTP/1.1 413 Payload Too Large");
    // It asks before it sends, and is not told to go on.
    let asking = post(&format!("expect: 100-continue\r\ncontent-length: {}", 100 * BODY), b"").await;
    assert_eq!(asking, "HTTP/1.1 413 Payload Too Large");
}
