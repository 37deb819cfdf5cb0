//! HTTP with limits: connections, headers, bodies and answers are all bounded, in size or number and in time.
//!
//! (`axum::serve` alone sets no limit on the time a header may take, hence hyper's own builder.) A connection that was
//! upgraded, to a WebSocket say, has left: its limits are those of whoever serves it then.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How many connections are served at once; the next ones wait in the listener's backlog.
const CONNECTIONS: usize = 1024;
/// How long a client may take to send a whole header; also how long it may keep an idle connection.
const HEADER: Duration = Duration::from_secs(10);
/// How long reading a body and answering may take together.
const ANSWER: Duration = Duration::from_secs(15);
/// The largest body read, in bytes.
const BODY: usize = 16 * 1024;
/// How long connections may take to finish once `stop` completes.
const GRACE: Duration = Duration::from_secs(10);

/// Serves `app` until `stop` completes, then lets the requests under way finish.
pub async fn serve(listener: TcpListener, app: Router, stop: impl Future<Output = ()>) {
    let app = app.layer(DefaultBodyLimit::max(BODY)).layer(middleware::from_fn(answer_in_time));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
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
                Ok((stream, _peer)) => (place, stream),
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
