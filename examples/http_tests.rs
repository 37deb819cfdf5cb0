//! Tests of the limits in `http.rs`, which has no room for them: it is to be copied.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Router, middleware};
use futures_util::stream;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::http::{BODY, HEADER, PER_CLIENT, bounded, serve};
use crate::taken::TAKEN;

/// The limit of anything here: it is there so that a test that would wait for ever fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A service that answers and looks at nothing; it ends with the sender.
async fn service() -> (SocketAddr, oneshot::Sender<()>) {
    service_of(Router::new().route("/", get("yes").post("yes"))).await
}

async fn service_of(app: Router) -> (SocketAddr, oneshot::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(serve(listener, app, async move { drop(stopped.await) }));
    (address, stop)
}

async fn connect(from: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(format!("{from}:0").parse().expect("an address")).expect("an address of this machine");
    socket.connect(to).await.expect("it listens")
}

/// The answer, as it comes until the connection ends.
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

/// A clock that stands still, however long this machine takes, and then jumps.
struct Standing(#[allow(dead_code, reason = "its end is what is waited for")] mpsc::Sender<()>);

impl Standing {
    fn still() -> Standing {
        tokio::time::pause();
        let (held, end) = mpsc::channel::<()>();
        // A paused clock does not go on by itself while a thread is busy.
        tokio::task::spawn_blocking(move || end.recv());
        Standing(held)
    }

    async fn jump(self, time: Duration) {
        tokio::time::advance(time).await;
        tokio::time::resume();
    }
}

#[tokio::test]
async fn a_thousand_half_sent_headers_leave_others_unharmed_and_are_dropped_when_their_time_is_over() {
    let standing = Standing::still();
    let (address, _stop) = service().await;
    let mut half_sent = Vec::new();
    for n in 0..1_000 {
        let mut stream = connect(&format!("127.0.0.{}", 2 + n / (PER_CLIENT - 1)), address).await;
        stream.write_all(b"POST / HTTP/1.1\r\nhost: ").await.expect("it is read");
        half_sent.push(stream);
    }
    for _ in 0..20 {
        let answer = answer(connect("127.0.0.9", address).await, GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    for stream in &half_sent {
        let read = stream.try_read(&mut [0; 1]);
        assert!(read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "all of them are there meanwhile");
    }
    standing.jump(HEADER).await;
    for mut stream in half_sent {
        let end = timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("it is dropped");
        assert!(!matches!(end, Ok(1..)), "{end:?}");
    }
    let answer = answer(connect("127.0.0.2", address).await, GET).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "their places are free again: {answer}");
}

/// Waits, by the machine's own clock, until a number has not changed for a while.
async fn until_it_stands(number: &AtomicUsize) -> usize {
    let (mut known, mut since) = (number.load(Ordering::SeqCst), Instant::now());
    let began = since;
    while known == 0 || since.elapsed() < Duration::from_millis(300) {
        tokio::task::yield_now().await;
        let now = number.load(Ordering::SeqCst);
        if now != known {
            (known, since) = (now, Instant::now());
        }
        assert!(began.elapsed() < PATIENCE, "it is still growing, at {known}");
    }
    known
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_sent_no_more_and_then_cut_off() {
    /// Says when the stream that it is in is dropped.
    struct Dropped(Option<oneshot::Sender<()>>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.take().expect("it is dropped once").send(());
        }
    }

    let sent = Arc::new(AtomicUsize::new(0));
    let (told, mut dropped) = oneshot::channel();
    let endless = (sent.clone(), Dropped(Some(told)));
    let body = Body::from_stream(stream::unfold(endless, async |endless| {
        endless.0.fetch_add(1, Ordering::SeqCst);
        Some((Ok::<_, std::convert::Infallible>("x".repeat(BODY)), endless))
    }));
    let body = Arc::new(std::sync::Mutex::new(Some(body)));
    let app =
        Router::new().route("/", get(async move || body.lock().expect("nobody panics").take().expect("asked once")));
    let standing = Standing::still();
    let (address, _stop) = service_of(app).await;
    let mut client = connect("127.0.0.1", address).await;
    client.write_all(GET).await.expect("it reads");
    // Then all buffers between the two are full.
    let stood = until_it_stands(&sent).await;
    tokio::time::advance(TAKEN / 2).await;
    assert!(dropped.try_recv().is_err(), "it has half of its time");
    // Whoever takes something has all of it again.
    let mut room = vec![0; 64 * BODY];
    client.read_exact(&mut room).await.expect("it was sent");
    while sent.load(Ordering::SeqCst) == stood {
        tokio::task::yield_now().await;
    }
    until_it_stands(&sent).await;
    tokio::time::advance(TAKEN / 2 + TAKEN / 4).await;
    assert!(dropped.try_recv().is_err(), "it has taken something since");
    standing.jump(TAKEN).await;
    timeout(PATIENCE, dropped).await.expect("its time is over").expect("the stream is dropped");
}

#[tokio::test]
async fn headers_that_are_too_large_are_refused() {
    let (address, _stop) = service().await;
    for (bytes, status) in [(BODY / 2, "200"), (BODY, "431")] {
        let request = format!("GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\nx: {}\r\n\r\n", "x".repeat(bytes));
        let mut stream = connect("127.0.0.1", address).await;
        // Refused half-way, there may be nobody to write to any more, or to read from.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("it is answered").expect("it says why");
        assert_eq!(std::str::from_utf8(&answer).expect("text"), format!("HTTP/1.1 {status}"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_take_as_long_as_a_client_may_ask_to_wait_and_a_body_may_not() {
    let slow = |seconds| get(move || tokio::time::sleep(Duration::from_secs(seconds)));
    let app = Router::new().route("/waits", slow(30)).route("/hangs", slow(300)).route("/", get("yes").post("yes"));
    let app = TowerToHyperService::new(app.layer(middleware::from_fn(bounded)));
    let ask = async |method: &str, path: &str, body: Body| {
        let request = Request::builder().method(method).uri(path).body(body).expect("a request");
        app.call(request).await.expect("an answer").status()
    };
    assert_eq!(ask("GET", "/waits", Body::empty()).await, StatusCode::OK);
    assert_eq!(ask("GET", "/hangs", Body::empty()).await, StatusCode::REQUEST_TIMEOUT);
    let endless = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    let began = tokio::time::Instant::now();
    assert_eq!(ask("POST", "/", endless).await, StatusCode::REQUEST_TIMEOUT);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}
