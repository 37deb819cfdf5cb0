//! Chat rooms on WebSockets, to copy: this file, `protocol.rs`, `room.rs`, `web.rs` and `page.html`, and `http.rs` as a `mod http`.
//!
//! ```text
//! cargo run --release --example chat_service -- DIR ADDRESS    # then open http://ADDRESS/ in two tabs
//! ```

mod protocol;
mod room;
mod web;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

/// Long enough for a reload or a tunnel, short enough to see it happen.
const GONE_AFTER: Duration = Duration::from_secs(15);

#[tokio::main]
async fn main() -> Result<ExitCode> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [data, listen] = &arguments[..] else {
        eprintln!("chat_service: its arguments are DIR ADDRESS");
        return Ok(ExitCode::from(2));
    };
    // Both before anybody is told to come: a signal that nobody has asked for ends a process.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = async { tokio::select!(_ = interrupt.recv() => {}, _ = terminate.recv() => {}) };
    web::serve(listen.parse()?, Path::new(data), GONE_AFTER, stop).await?;
    Ok(ExitCode::SUCCESS)
}
