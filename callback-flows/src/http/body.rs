//! Bodies, read up to a limit.

use std::future::poll_fn;
use std::pin::Pin;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures_core::Stream as _;

use super::problem::{BROKEN_BODY, Problem, TOO_LARGE};

/// Reads a body of at most `limit` bytes whole, into no more memory than those.
pub(super) async fn whole(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Problem> {
    let told = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if told.is_some_and(|bytes| bytes > limit) {
        return Err(too_large(limit));
    }
    let mut body = body.into_data_stream();
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    while let Some(chunk) = poll_fn(|task| Pin::new(&mut body).poll_next(task)).await {
        // Its error is that of the connection, and says nothing that the client does not know.
        let chunk = chunk.map_err(|_| Problem::new(BROKEN_BODY, "the connection ended in the middle of the body"))?;
        if first.len() + rest.len() + chunk.len() > limit {
            return Err(too_large(limit));
        }
        // Most bodies come in one piece.
        if first.is_empty() && rest.is_empty() {
            first = chunk;
            continue;
        }
        if rest.is_empty() {
            rest.extend_from_slice(&std::mem::take(&mut first));
        }
        rest.extend_from_slice(&chunk);
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

fn too_large(limit: usize) -> Problem {
    Problem::new(TOO_LARGE, format!("the body may have {limit} bytes"))
}
