//! Measurements of flows over HTTP: both routers behind hyper's server, as a program would have them, and clients by hand over
//! connections that are kept alive, so that little of the two cores goes into asking.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Hosts, Running};
use crate::measure::{CHILD, cpu_time, most_descriptors, resident_bytes};
use crate::stores::Place;

/// The time that a client has for a header, as in the examples: nothing that is measured takes so long.
const HEADER: Duration = Duration::from_secs(10);
/// The room for a header, and for what a client has not taken: hyper's least.
const BUFFER: usize = 8 * 1_024;
/// Clients that call at once where others are beside them.
const BESIDE: usize = 8;
/// Forged calls that a client sends at once, as one would that means harm.
const AT_ONCE: usize = 16;
/// Clients that open streams at the same time.
const OPENERS: usize = 64;
/// The descriptors that a process needs for other things than its streams.
const OTHERS: u64 = 100;

/// A server, which ends with this value.
struct Server {
    address: SocketAddr,
    _serving: JoinSet<()>,
}

impl Server {
    async fn start(running: &Running) -> Server {
        let flows = &running.flows;
        let app = Router::new().nest("/flows", flows.router()).nest("/callbacks", flows.callback_router());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        let http =
            http1::Builder::new().timer(TokioTimer::new()).header_read_timeout(HEADER).max_buf_size(BUFFER).clone();
        let app = TowerToHyperService::new(app);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("there are descriptors left");
                stream.set_nodelay(true).expect("it is a socket");
                let connection = http.serve_connection(TokioIo::new(stream), app.clone());
                open.spawn(async move { drop(connection.await) });
                while open.try_join_next().is_some() {}
            }
        });
        Server { address, _serving: serving }
    }
}

/// A connection that is kept alive.
struct Client {
    stream: TcpStream,
    /// Bytes that came and were not looked at.
    rest: Vec<u8>,
}

impl Client {
    async fn connect(to: SocketAddr) -> Client {
        let stream = TcpStream::connect(to).await.expect("it listens");
        stream.set_nodelay(true).expect("it is a socket");
        Client { stream, rest: Vec::with_capacity(1_024) }
    }

    async fn send(&mut self, requests: &str) {
        self.stream.write_all(requests.as_bytes()).await.expect("the server is there");
    }

    /// The status of the next answer.
    async fn status(&mut self) -> u16 {
        loop {
            if let Some((status, length)) = first_answer(&self.rest) {
                self.rest.drain(..length);
                return status;
            }
            let read = self.stream.read_buf(&mut self.rest).await.expect("the server is there");
            assert!(read > 0, "the server has closed the connection");
        }
    }

    async fn ask(&mut self, request: &str) -> u16 {
        self.send(request).await;
        self.status().await
    }

    /// Calls a callback, which is to be accepted.
    async fn call(&mut self, url: &str) {
        assert_eq!(self.ask(&call(path_of(url))).await, 202, "the call is accepted");
    }
}

/// The status of the answer that these bytes begin with, and its length; `None` if it is not whole.
fn first_answer(bytes: &[u8]) -> Option<(u16, usize)> {
    let head = bytes.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).expect("headers are text");
    let status = text.get(9..12).and_then(|status| status.parse().ok()).expect("it begins with its status");
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length = head + length.map_or(0, |length| length.parse::<usize>().expect("it is a number"));
    (bytes.len() >= length).then_some((status, length))
}

fn path_of(url: &str) -> &str {
    let path = url.strip_prefix("https://flows.example");
    path.expect("the flow gave it out")
}

fn call(path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ncontent-length: 1\r\n\r\n1")
}

impl Running {
    /// Starts a flow that waits, by HTTP, and returns the URL at which it does.
    async fn begin_by(&self, client: &mut Client, id: &str, slot: usize) -> String {
        let input = format!("{{\"slot\":{slot},\"id\":\"{id}\",\"steps\":0}}");
        let request = format!(
            "PUT /flows/wait/{id} HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{input}",
            input.len()
        );
        assert_eq!(client.ask(&request).await, 202, "the flow is accepted");
        self.url_in(slot, id).await
    }
}

/// Flows per second, each started and called by HTTP, with so many clients for so long; and the time of processors that each has taken in this
/// process, clients included, in microseconds.
pub async fn rate(place: &dyn Place, clients: usize, time: Duration) -> (f64, f64) {
    let running = Arc::new(Running::start(place, Hosts::One).await);
    let server = Server::start(&running).await;
    let next = Arc::new(AtomicU64::new(0));
    let (started, used) = (Instant::now(), cpu_time());
    let run = |slot| {
        let (running, next, address) = (running.clone(), next.clone(), server.address);
        tokio::spawn(async move {
            let mut client = Client::connect(address).await;
            let mut flows = 0_u64;
            while started.elapsed() < time {
                let url = running.begin_by(&mut client, &running.next_id(&next), slot).await;
                client.call(&url).await;
                flows += 1;
            }
            flows
        })
    };
    let clients: Vec<_> = (0..clients).map(run).collect();
    let mut flows = 0;
    for client in clients {
        flows += client.await.expect("no client fails");
    }
    let rate = flows as f64 / started.elapsed().as_secs_f64();
    let each = (cpu_time() - used).as_secs_f64() * 1e6 / flows as f64;
    drop(server);
    Arc::into_inner(running).expect("no client is left").end().await;
    (rate, each)
}

/// Times until a call was acknowledged, in milliseconds, in order: handed in within the process, and by HTTP, in turn, each while
/// nothing else happens.
pub async fn acknowledged(place: &dyn Place, flows: u64) -> (Vec<f64>, Vec<f64>) {
    let running = Running::start(place, Hosts::One).await;
    let server = Server::start(&running).await;
    let mut client = Client::connect(server.address).await;
    let next = AtomicU64::new(0);
    let (mut within, mut by_http) = (Vec::new(), Vec::new());
    for n in 0..2 * flows {
        let url = running.begin(&running.next_id(&next), 0, 0).await;
        let called = Instant::now();
        let is_within = n % 2 == 0;
        if is_within {
            running.call(&url).await;
        } else {
            client.call(&url).await;
        }
        // The first ones warm it up.
        if n >= flows / 10 {
            let times = if is_within { &mut within } else { &mut by_http };
            times.push(called.elapsed().as_secs_f64() * 1e3);
        }
    }
    within.sort_by(f64::total_cmp);
    by_http.sort_by(f64::total_cmp);
    drop((server, client));
    running.end().await;
    (within, by_http)
}

/// Calls that are refused because their token is forged.
#[derive(Debug)]
pub struct Forged {
    /// Calls a second.
    pub rate: f64,
    /// The calls of the store meanwhile.
    pub calls: u64,
    /// The calls of the store in as much time before, in which nobody asked for anything.
    pub calls_before: u64,
}

/// Sends forged calls, by so many clients for so long.
pub async fn forged(place: &dyn Place, clients: usize, time: Duration) -> Forged {
    let running = Running::start(place, Hosts::One).await;
    let server = Server::start(&running).await;
    let url = running.begin("forged", 0, 0).await;
    let mut forged = path_of(&url).to_owned();
    let last = if forged.pop() == Some('A') { 'Q' } else { 'A' };
    forged.push(last);
    let requests = call(&forged).repeat(AT_ONCE);
    let first = running.store.calls();
    tokio::time::sleep(time).await;
    let (before, started) = (running.store.calls(), Instant::now());
    let run = |_| {
        let (requests, address) = (requests.clone(), server.address);
        tokio::spawn(async move {
            let mut client = Client::connect(address).await;
            let mut refused = 0_u64;
            while started.elapsed() < time {
                client.send(&requests).await;
                for _ in 0..AT_ONCE {
                    assert_eq!(client.status().await, 404, "the token is forged");
                    refused += 1;
                }
            }
            refused
        })
    };
    let clients: Vec<_> = (0..clients).map(run).collect();
    let mut refused = 0;
    for client in clients {
        refused += client.await.expect("no client fails");
    }
    let rate = refused as f64 / started.elapsed().as_secs_f64();
    let found = Forged { rate, calls: running.store.calls() - before, calls_before: before - first };
    drop(server);
    running.end().await;
    found
}

/// Times of calls by HTTP, in milliseconds, in order: by themselves, and with so many connections beside them whose header is half sent.
pub async fn beside(place: &dyn Place, flows: u64, half_sent: usize) -> (Vec<f64>, Vec<f64>) {
    let _granted = most_descriptors(2 * half_sent as u64 + OTHERS);
    let running = Arc::new(Running::start(place, Hosts::One).await);
    let server = Server::start(&running).await;
    let next = Arc::new(AtomicU64::new(0));
    // The first ones warm it up.
    calls(&running, server.address, &next, flows / 4).await;
    let alone = calls(&running, server.address, &next, flows).await;
    let mut halves = Vec::new();
    for _ in 0..half_sent {
        let mut client = Client::connect(server.address).await;
        client.send("POST /callbacks/a HTTP/1.1\r\nhost").await;
        halves.push(client);
    }
    let beside = calls(&running, server.address, &next, flows).await;
    for half in &halves {
        let read = half.stream.try_read(&mut [0; 1]);
        assert!(read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "it was there all the time");
    }
    drop((server, halves));
    Arc::into_inner(running).expect("no client is left").end().await;
    (alone, beside)
}

async fn calls(running: &Arc<Running>, address: SocketAddr, next: &Arc<AtomicU64>, flows: u64) -> Vec<f64> {
    let call = |slot| {
        let (running, next) = (running.clone(), next.clone());
        tokio::spawn(async move {
            let mut client = Client::connect(address).await;
            let mut times = Vec::new();
            for _ in 0..flows / BESIDE as u64 {
                let url = running.begin(&running.next_id(&next), slot, 0).await;
                let called = Instant::now();
                client.call(&url).await;
                times.push(called.elapsed().as_secs_f64() * 1e3);
            }
            times
        })
    };
    let mut times = Vec::new();
    for called in (0..BESIDE).map(call).collect::<Vec<_>>() {
        times.extend(called.await.expect("no client fails"));
    }
    times.sort_by(f64::total_cmp);
    times
}

/// Bytes of memory that an idle event stream takes at its server, and the number of streams that were open: as many as were asked for,
/// unless the hard limit of descriptors is lower. The server is a process of its own, on a store that holds as many parked flows.
///
/// # Panics
/// If the server cannot be started.
pub async fn stream_bytes(store: &str, address: &str, streams: u64) -> (f64, u64) {
    let streams = streams.min(most_descriptors(streams + OTHERS).saturating_sub(OTHERS));
    let program = std::env::current_exe().expect("a running program has a path");
    let mut server = Command::new(program)
        .args([CHILD, "streams", store, address, &streams.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program can be started again");
    let mut lines = BufReader::new(server.stdout.take().expect("it is a pipe")).lines();
    let mut line = || lines.next().expect("the server says something").expect("it is text");
    let address: SocketAddr = line().parse().expect("an address");
    let mut openers = JoinSet::new();
    for opener in 0..OPENERS as u64 {
        openers.spawn(async move {
            let mut open = Vec::new();
            for number in (opener..streams).step_by(OPENERS) {
                let mut client = Client::connect(address).await;
                let request = format!(
                    "GET /flows/sleep/{number}/events HTTP/1.1\r\nhost: h\r\naccept: text/event-stream\r\n\r\n"
                );
                client.send(&request).await;
                while !client.rest.windows(7).any(|word| word == b"retry: ") {
                    assert!(client.stream.read_buf(&mut client.rest).await.expect("it is there") > 0, "it is open");
                }
                open.push(client);
            }
            open
        });
    }
    let open: Vec<_> = openers.join_all().await;
    let mut to_server = server.stdin.take().expect("it is a pipe");
    writeln!(to_server, "all are open").expect("the server listens");
    let bytes = line().parse().expect("a number");
    drop((open, to_server));
    server.wait().expect("it was started here");
    (bytes, streams)
}

/// Serves streams of so many parked flows, in a process of its own, and prints how many bytes each takes when it is told that all are open.
///
/// # Panics
/// If a flow is not there.
pub async fn serve_streams(place: &dyn Place, streams: u64) {
    let _granted = most_descriptors(streams + OTHERS);
    let running = Running::start(place, Hosts::One).await;
    let server = Server::start(&running).await;
    // What the store keeps in memory of what was read is not the streams'.
    for number in 0..streams {
        let status = running.flows.get("sleep", &number.to_string()).await.expect("the store is there");
        assert!(status.is_some(), "the flow was started");
    }
    let before = resident_bytes();
    println!("{}", server.address);
    let told = tokio::task::spawn_blocking(|| std::io::stdin().lines().next());
    told.await.expect("it reads").expect("a line comes").expect("it is text");
    println!("{}", resident_bytes().saturating_sub(before) as f64 / streams as f64);
    drop(server);
    running.end().await;
}

/// Leaves so many parked flows at a place.
pub async fn leave_parked(place: &dyn Place, flows: u64) {
    let running = Arc::new(Running::start(place, Hosts::One).await);
    running.park(flows).await;
    Arc::into_inner(running).expect("nobody else is left").end().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let answer = b"HTTP/1.1 202 Accepted\r\ncontent-length: 3\r\n\r\nabcHTTP/1.1";
        assert_eq!(first_answer(answer), Some((202, answer.len() - 8)));
        assert_eq!(first_answer(&answer[..answer.len() - 9]), None);
        assert_eq!(first_answer(b"HTTP/1.1 404 Not Found\r\n\r\n"), Some((404, 26)));
        assert_eq!(first_answer(b"HTTP/1.1 404 Not"), None);
    }
}
