//! Money that is posted from account to account arrives exactly once, though the host is killed in the middle.
//! Run: `cargo run --release --example transfer -- [--url postgres://..]`, without a URL on a private server.

mod server;

use std::{process::ExitCode, sync::Arc, time::Duration};

use alarm_backends::postgres::{Poster, PostgresContext};
use examples::BoxError;
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use stable_interfaces::{Context, Fleet, FleetClient, Handle, Host, Message, NewPost, OnMessage};
use stable_interfaces::{RequestError, StableInterface, Store};

const ACCOUNTS: [&str; 4] = ["ann", "bob", "eve", "joe"];
const TRANSFERS: usize = 300;

struct Account(Poster);

#[derive(Serialize, Deserialize)]
struct Order {
    cents: i64,
    to: Option<String>, // to be sent on, or to be kept
}

impl StableInterface for Account {
    const NAME: &'static str = "account";
    type Error = anyhow::Error;
}

impl OnMessage for Account {
    async fn on_message(&mut self, cx: &mut Context, message: &Message) -> anyhow::Result<()> {
        let balance: i64 = cx.get("balance").await?.unwrap_or(0);
        let Order { cents, to } = message.json()?;
        let Some(to) = to else { return Ok(cx.put("balance", &(balance + cents))?) };
        cx.put("balance", &(balance - cents))?;
        let (poster, order) = (self.0.clone(), NewPost::json(&Order { cents, to: None })?);
        // The end of this message, the balance and the message to the other account: all of it happens, or nothing.
        cx.transaction(async |tx| poster.post_in(&**tx, Self::NAME, &to, order).await).await?;
        Ok(())
    }
}

impl Handle<()> for Account {
    type Reply = i64;
    async fn handle(&mut self, cx: &mut Context, _: ()) -> anyhow::Result<i64> {
        Ok(cx.get("balance").await?.unwrap_or(0))
    }
}

async fn run() -> Result<String, BoxError> {
    let server = server::Server::from_args()?;
    let (fleet, poster) = (Fleet::new(["host-0"], 16)?, Poster::new(&server.schema)?);
    let store: Arc<dyn Store> = Arc::new(server.store().await?);
    let mut host = Host::builder("host-0", fleet.clone()).shared_store(store.clone());
    let accounts = host.interface(move |_id| Account(poster.clone())).with_inbox().register()?;
    if server.is_host {
        return server.run(host).await;
    }
    let (client, mut expected) = (FleetClient::new(store, fleet), [0; 4]);
    // Until a kill comes before all are done.
    while server::until_waiting(&client, Account::NAME, &ACCOUNTS, usize::MAX).await? == 0 {
        for (n, cents) in (0..TRANSFERS).zip((1..8).cycle()) {
            let (from, to) = (n % 4, n / 3 % 4);
            let order = NewPost::json(&Order { cents, to: Some(ACCOUNTS[to].to_owned()) })?;
            client.post(Account::NAME, ACCOUNTS[from], order).await?;
            expected[from] -= cents;
            expected[to] += cents;
        }
        let mut host_process = server.start_host()?;
        server::until_waiting(&client, Account::NAME, &ACCOUNTS, TRANSFERS * 3 / 4).await?;
        host_process.kill().await?;
    }
    let host = host.start().await?;
    // Twice: what was on its way between two accounts at the first look has arrived by the second, or is seen there.
    server::until_waiting(&client, Account::NAME, &ACCOUNTS, 0).await?;
    server::until_waiting(&client, Account::NAME, &ACCOUNTS, 0).await?;
    let balances = try_join_all(ACCOUNTS.map(|name| accounts.request(name, ()))).await.map_err(RequestError::report)?;
    host.drain(Duration::from_secs(5)).await;
    if balances != expected {
        return Err(format!("there is {balances:?} and not {expected:?}").into());
    }
    let sum: i64 = balances.iter().sum();
    Ok(format!("transfers over a kill: all balances are right, the sum is {sum}"))
}

#[tokio::main]
async fn main() -> ExitCode {
    examples::end("transfer", run()).await
}
