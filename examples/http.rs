//! HTTP with limits: connections, headers, bodies and answers are all bounded, in size or number and in time, and no client can
//! take all of it for itself.
//!
//! (`axum::serve` alone sets no limit on the time a header may take, hence hyper's own builder.) A connection that was
//! upgraded, to a WebSocket say, has left: its limits are those of whoever serves it then.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How many connections are served at once; the next ones wait in the listener's backlog.
const CONNECTIONS: usize = 1024;
/// How many of them one client may hold, whether it says anything on them or not; those beyond are closed at once.
const PER_CLIENT: usize = 256;
/// How long a client may take to send a whole header; also how long it may keep an idle connection.
const HEADER: Duration = Duration::from_secs(10);
/// How long reading a body and answering may take together.
const ANSWER: Duration = Duration::from_secs(15);
/// The largest body taken, in bytes.
const BODY: usize = 16 * 1024;
/// How much of a larger one is read all the same, in bytes: a client that is still sending when its connection is closed may not see
/// why.
const DISCARDED: usize = 1024 * 1024;
/// How long connections may take to finish once `stop` completes.
const GRACE: Duration = Duration::from_secs(10);

/// Serves `app` until `stop` completes, then lets the requests under way finish.
pub async fn serve(listener: TcpListener, app: Router, stop: impl Future<Output = ()>) {
    let app = app.layer(middleware::from_fn(read_body)).layer(middleware::from_fn(answer_in_time));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let clients = Clients::default();
    let (stopping, is_stopping) = watch::channel(false);
    let mut open = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! { biased;
            () = &mut stop => break,
            // Those that have ended are not kept.
            Some(_) = open.join_next() => continue,
            (place, stream) = accepted => match stream {
                Ok((stream, peer)) => match clients.admit(peer.ip()) {
                    Some(admitted) => ((place, admitted), stream),
                    None => continue,
                },
                // Most likely out of file descriptors; trying again at once would only burn the processor.
                Err(_) => { sleep(Duration::from_millis(50)).await; continue }
            },
        };
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app.clone()));
        let mut is_stopping = is_stopping.clone();
        open.spawn(async move {
            let mut connection = pin!(connection.with_upgrades());
            // An error is a client that went away or broke the protocol: its own affair.
            tokio::select! { biased;
                _ = connection.as_mut() => return,
                _ = is_stopping.wait_for(|stopping| *stopping) => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    stopping.send_replace(true);
    let _ = timeout(GRACE, open.join_all()).await;
}

/// How many connections each client has open.
#[derive(Debug, Clone, Default)]
struct Clients(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Clients {
    /// Counts a connection of the client at `address`, unless it has as many as it may.
    fn admit(&self, address: IpAddr) -> Option<Admitted> {
        let client = client_at(address);
        let mut open = self.0.lock().expect("nobody panics while counting");
        let count = open.entry(client).or_default();
        if *count >= PER_CLIENT {
            return None;
        }
        *count += 1;
        Some(Admitted { clients: self.clone(), client })
    }
}

/// One connection of a client, until it is dropped.
#[derive(Debug)]
struct Admitted {
    clients: Clients,
    client: IpAddr,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.clients.0.lock().expect("nobody panics while counting");
        if let Entry::Occupied(mut count) = open.entry(self.client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// One client for all addresses that it can choose among: of IPv6 it has a network of 64 bits, usually.
fn client_at(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

/// Reads the body before anything is done, also where nobody will look at it: one that is too large is refused, not overlooked.
async fn read_body(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let too_large =
        || (StatusCode::PAYLOAD_TOO_LARGE, format!("a body may have at most {BODY} bytes\n")).into_response();
    if parts.headers.contains_key(header::EXPECT) && body.size_hint().lower() > BODY as u64 {
        // It asks before it sends.
        return too_large();
    }
    let (mut kept, mut read, mut chunks) = (Vec::new(), 0, body.into_data_stream());
    while let Some(chunk) = chunks.next().await {
        let Ok(chunk) = chunk else { return StatusCode::BAD_REQUEST.into_response() };
        read += chunk.len();
        if read <= BODY {
            kept.extend_from_slice(&chunk);
        } else if read > DISCARDED {
            break;
        }
    }
    if read > BODY {
        return too_large();
    }
    next.run(Request::from_parts(parts, Body::from(kept))).await
}

async fn answer_in_time(request: Request, next: Next) -> Response {
    match timeout(ANSWER, next.run(request)).await {
        Ok(response) => response,
        Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
    }
}

/// A client whose every request has an end: `limit` for the whole exchange.
///
/// It goes past any configured proxy, because all that these programs call is on this machine, and it makes a new connection
/// for each request, so that "refused" says for certain that the request was never sent.
///
/// # Panics
/// Never: a client without TLS has nothing to load that could fail.
#[must_use]
pub fn client(limit: Duration) -> reqwest::Client {
    reqwest::Client::builder()
        .timeout(limit)
        .no_proxy()
        .pool_max_idle_per_host(0)
        .build()
        .expect("a client without TLS has nothing to load that could fail")
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpSocket, TcpStream};
    use tokio::sync::oneshot;

    use super::*;

    /// How long anything here may take: it is there so that a test that would wait for ever fails.
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
            let mut request =
                format!("POST / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{length}\r\n\r\n").into_bytes();
            request.extend_from_slice(body);
            let answer = answer(connect("127.0.0.1", address).await, &request).await;
            answer.lines().next().unwrap_or_default().to_owned()
        };
        let plain = async |bytes: usize| post(&format!("content-length: {bytes}"), &vec![b'x'; bytes]).await;
        assert_eq!(plain(0).await, "HTTP/1.1 200 OK");
        assert_eq!(plain(BODY).await, "HTTP/1.1 200 OK");
        assert_eq!(plain(BODY + 1).await, "HTTP/1.1 413 Payload Too Large");
        assert_eq!(plain(20 * BODY).await, "HTTP/1.1 413 Payload Too Large");
        let mut chunked = format!("{:x}\r\n", BODY + 1).into_bytes();
        chunked.extend(vec![b'x'; BODY + 1]);
        chunked.extend(b"\r\n0\r\n\r\n");
        assert_eq!(post("transfer-encoding: chunked", &chunked).await, "HTTP/1.1 413 Payload Too Large");
        // It asks before it sends, and is not told to go on.
        let asking = post(&format!("expect: 100-continue\r\ncontent-length: {}", 100 * BODY), b"").await;
        assert_eq!(asking, "HTTP/1.1 413 Payload Too Large");
    }

    #[test]
    fn a_client_is_its_address_and_of_ipv6_its_network() {
        let of = |text: &str| client_at(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
