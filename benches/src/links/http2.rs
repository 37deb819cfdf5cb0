//! HTTP/2 by hyper: one connection, a POST for each request.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::server::conn::http2 as server;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

use super::{Add, Count, Counted, Link};

/// The end that asks.
#[derive(Debug, Clone)]
pub struct Http2(SendRequest<Full<Bytes>>);

/// Answers whoever calls, for ever.
pub async fn serve(listener: TcpListener) {
    let count = Count::default();
    loop {
        let (stream, _) = listener.accept().await.expect("a connection can be taken");
        stream.set_nodelay(true).expect("a socket has this option");
        let count = count.clone();
        let answer = service_fn(move |request: Request<Incoming>| {
            let count = count.clone();
            async move {
                let add = request.into_body().collect().await.expect("the message comes whole").to_bytes();
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(count.add_json(&add)))))
            }
        });
        let mut connection = server::Builder::new(TokioExecutor::new());
        connection.max_concurrent_streams(10_000);
        tokio::spawn(connection.serve_connection(TokioIo::new(stream), answer));
    }
}

impl Http2 {
    /// Calls.
    ///
    /// # Panics
    /// If nobody is there.
    pub async fn connect(address: &str) -> Http2 {
        let stream = TcpStream::connect(address).await.expect("the other side listens");
        stream.set_nodelay(true).expect("a socket has this option");
        let mut greeting = http2::Builder::new(TokioExecutor::new());
        greeting.initial_max_send_streams(10_000);
        let (send, connection) = greeting.handshake(TokioIo::new(stream)).await.expect("the other side speaks HTTP/2");
        tokio::spawn(connection);
        Http2(send)
    }
}

impl Link for Http2 {
    async fn ask(&self, caller: usize) -> u64 {
        let body = serde_json::to_vec(&Add::of(caller)).expect("the message can be written");
        let request = Request::post("http://other/add").body(Full::new(Bytes::from(body))).expect("the request is one");
        let answer = self.0.clone().send_request(request).await.expect("the other side answers");
        let reply = answer.into_body().collect().await.expect("the reply comes whole").to_bytes();
        serde_json::from_slice::<Counted>(&reply).expect("the reply is one").count
    }
}
