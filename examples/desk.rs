//! A help desk: sees from outside what a fleet gave up, mends what was wrong, and has it tried again.
//! Run: `cargo run --release --example desk -- [--url postgres://..]`, without a URL on a private server.

mod server;

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use examples::BoxError;
use serde::{Deserialize, Serialize};
use stable_interfaces::{Context, Dead, Directive, Fleet, FleetClient, Host, Message, NewPost, OnMessage};
use stable_interfaces::{RetryPolicy, StableInterface};

const PARCELS: [&str; 3] = ["1", "2", "3"];

struct Parcel;

#[derive(Serialize, Deserialize)]
enum Note {
    Address(String),
    Deliver,
}

impl StableInterface for Parcel {
    const NAME: &'static str = "parcel";
    type Error = anyhow::Error;
}

impl OnMessage for Parcel {
    async fn on_message(&mut self, cx: &mut Context, message: &Message) -> anyhow::Result<()> {
        match message.json()? {
            Note::Address(address) => cx.put("address", &address)?,
            Note::Deliver => {
                let address: String = cx.get("address").await?.context("it has no address")?;
                cx.put("delivered", &address)?;
            }
        }
        Ok(())
    }
}

async fn run() -> Result<String, BoxError> {
    let server = server::Server::from_args()?;
    let (fleet, store) = (Fleet::new(["host-0"], 16)?, server.store().await?);
    if server.is_host {
        let mut host = Host::builder("host-0", fleet).store(store);
        let retry = RetryPolicy::new().first(Duration::from_millis(50)).attempts(2);
        host.interface(|_id| Parcel).with_inbox().retry(retry).register()?;
        return server.run(host).await;
    }
    let mut host = server.start_host()?;
    let desk = FleetClient::new(Arc::new(store), fleet);
    let post = async |parcel, note| desk.post(Parcel::NAME, parcel, NewPost::json(&note)?).await;
    for parcel in PARCELS {
        if parcel != "2" {
            post(parcel, Note::Address("1 Main Street".to_owned())).await?;
        }
        post(parcel, Note::Deliver).await?;
    }
    let given_up = settled(&desk, 1).await?;
    for dead in &given_up {
        println!("parcel {} was given up: {}", dead.instance(), dead.reason());
        post(dead.instance(), Note::Address("2 Main Street".to_owned())).await?;
        desk.direct(Parcel::NAME, dead.instance(), Directive::requeue(dead)).await?;
    }
    let left = settled(&desk, 0).await?;
    drop(host.stdin.take());
    host.wait().await?;
    Ok(format!("3 parcels: {} given up, requeued and delivered; {} left", given_up.len(), left.len()))
}

/// Looks until so many letters are dead and no message waits. Each is seen before and after: one may be on its way back, or die again.
async fn settled(desk: &FleetClient, dead: usize) -> Result<Vec<Dead>, BoxError> {
    loop {
        let before = desk.dead_letters(Parcel::NAME, None, 100).await?;
        server::until_waiting(desk, Parcel::NAME, &PARCELS, 0).await?;
        let after = desk.dead_letters(Parcel::NAME, None, 100).await?;
        if before == after && after.len() == dead {
            return Ok(after);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    examples::end("desk", run()).await
}
