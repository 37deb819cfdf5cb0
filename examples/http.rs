//! HTTP with limits on connections, headers, bodies and answers, in number or size and in time: no client takes it all.
//! (`axum::serve` lets a header take for ever, hence hyper's builder.) One that was upgraded has but to take what it is sent.

use crate::taken::Taken;
use axum::body::{HttpBody, to_bytes};
use axum::{Router, extract::Request, http::StatusCode, middleware, middleware::Next, response::Response};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, rt::TokioTimer, service::TowerToHyperService};
use std::net::IpAddr::{V4, V6};
use std::{collections::HashMap, pin::pin, time::Duration};
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time};

const CONNECTIONS: usize = 1024; // at once; the next ones wait in the listener's backlog
pub(crate) const PER_CLIENT: usize = 256; // of them; those beyond are closed at once
pub(crate) const HEADER: Duration = Duration::from_secs(10); // for a whole header, and for a connection without a request
const ARRIVAL: Duration = Duration::from_secs(15); // for a whole body; in the end for all that are under way
const ANSWER: Duration = Duration::from_secs(40); // for an answer to begin: `Prefer: wait` holds one up for 30
pub(crate) const BODY: usize = 16 * 1024; // bytes; up to eight times as many are read, so that the client sees why not

/// Serves `app` until `stop` completes, then lets the requests under way finish.
pub async fn serve(listener: TcpListener, app: Router, stop: impl Future<Output = ()>) {
    let app = TowerToHyperService::new(app.layer(middleware::from_fn(bounded)));
    let http = http1::Builder::new().timer(TokioTimer::new()).header_read_timeout(HEADER).max_buf_size(BODY).clone();
    let (stopping, stopped) = watch::channel(());
    let (mut open, mut clients, mut stop) = (JoinSet::new(), HashMap::new(), pin!(stop));
    loop {
        tokio::select! { biased;
            () = &mut stop => break,
            Some(end) = open.join_next_with_id() => drop(clients.remove(&end.map_or_else(|e| e.id(), |(id, ())| id))),
            accepted = listener.accept(), if open.len() < CONNECTIONS => {
                // Most likely out of file descriptors: trying again at once would only burn the processor.
                let Ok((stream, peer)) = accepted else { time::sleep(Duration::from_millis(50)).await; continue };
                // Of IPv6 a client has a network of 64 bits, usually, and chooses its addresses there.
                let client = match peer.ip().to_canonical() { V6(a) => a.to_bits() >> 64, V4(a) => a.to_bits().into() };
                if clients.values().filter(|other| **other == client).count() >= PER_CLIENT { continue }
                let stream = TokioIo::new(Taken::new(stream));
                let mut connection = Box::pin(http.serve_connection(stream, app.clone()).with_upgrades());
                let mut stopped = stopped.clone();
                let serving = async move {
                    tokio::select! { biased;
                        _ = connection.as_mut() => {}
                        _ = stopped.changed() => { connection.as_mut().graceful_shutdown(); let _ = connection.await; }
                    }
                };
                clients.insert(open.spawn(serving).id(), client);
            }
        }
    }
    drop((listener, stopping));
    let _ = time::timeout(ARRIVAL, async { while open.join_next().await.is_some() {} }).await;
}

/// Reads the body before anything else, also where nobody looks at it: so none is too large and overlooked.
pub(crate) async fn bounded(request: Request, next: Next) -> Result<Response, StatusCode> {
    let (parts, body) = request.into_parts();
    // One that is announced as much too large is not read at all: a client that asks first need not send it.
    let is_hopeless = body.size_hint().lower() > 8 * BODY as u64;
    let read = async { if is_hopeless { None } else { to_bytes(body, 8 * BODY).await.ok() } };
    let body = time::timeout(ARRIVAL, read).await.or(Err(StatusCode::REQUEST_TIMEOUT))?;
    let body = body.filter(|body| body.len() <= BODY).ok_or(StatusCode::PAYLOAD_TOO_LARGE)?;
    time::timeout(ANSWER, next.run(Request::from_parts(parts, body.into()))).await.or(Err(StatusCode::REQUEST_TIMEOUT))
}
