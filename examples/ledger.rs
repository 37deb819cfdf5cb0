//! A balance and the application's own rows about it land in one transaction, or neither does: `cx.transaction` on Postgres.
//! Run: `cargo run --release --example ledger -- [--url postgres://..]`, without a URL on a private server.

mod server;

use std::{process::ExitCode, time::Duration};

use alarm_backends::postgres::PostgresContext;
use examples::BoxError;
use stable_interfaces::{Context, ContextError, Fleet, Handle, Host, RequestError, StableInterface};

/// The application's own table, made long ago elsewhere; a row belongs to one account, whose ID no other run has.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS example_ledger (account text, cents bigint)";

struct Account;

#[derive(Debug, thiserror::Error)]
enum AccountError {
    #[error("there is not so much on the account")]
    Overdrawn,
    #[error(transparent)]
    Context(#[from] ContextError),
    #[error("the database")]
    Sql(#[from] tokio_postgres::Error),
}

impl StableInterface for Account {
    const NAME: &'static str = "account";
    type Error = AccountError;
}

struct Book(i64);

impl Handle<Book> for Account {
    type Reply = i64;
    async fn handle(&mut self, cx: &mut Context, Book(cents): Book) -> Result<i64, AccountError> {
        let (account, balance) = (cx.id().to_owned(), cx.get("balance").await?.unwrap_or(0) + cents);
        cx.put("balance", &balance)?;
        cx.transaction(async |tx| {
            tx.batch_execute(TABLE).await?;
            tx.execute("INSERT INTO example_ledger (account, cents) VALUES ($1, $2)", &[&account, &cents]).await?;
            // Takes back the row and the balance, both of them recorded by now.
            if balance < 0 { Err(AccountError::Overdrawn) } else { Ok(balance) }
        })
        .await
    }
}

struct Audit;

impl Handle<Audit> for Account {
    type Reply = (i64, i64, i64);
    async fn handle(&mut self, cx: &mut Context, _: Audit) -> Result<(i64, i64, i64), AccountError> {
        let (account, balance) = (cx.id().to_owned(), cx.get("balance").await?.unwrap_or(0));
        cx.transaction(async |tx| {
            let sql = "SELECT count(*), coalesce(sum(cents), 0)::bigint FROM example_ledger WHERE account = $1";
            let row = tx.query_one(sql, &[&account]).await?;
            Ok((balance, row.get(0), row.get(1)))
        })
        .await
    }
}

async fn run() -> Result<String, BoxError> {
    let server = server::Server::from_args()?;
    let mut host = Host::builder("host-0", Fleet::new(["host-0"], 16)?).store(server.store().await?);
    let accounts = host.interface(|_id| Account).register()?;
    let host = host.start().await?;
    let account = format!("ann of {}", server.schema);
    let mut refused = 0;
    for cents in [100, -30, -90, -40] {
        match accounts.request(&account, Book(cents)).await {
            Ok(balance) => println!("{cents:+}: the balance is {balance}"),
            Err(RequestError::Handler(AccountError::Overdrawn, _)) => refused += 1,
            Err(error) => return Err(error.into()),
        }
    }
    let (balance, rows, sum) = accounts.request(&account, Audit).await?;
    host.drain(Duration::from_secs(5)).await;
    if (balance, rows, refused) != (sum, 3, 1) {
        return Err(format!("{refused} refused, a balance of {balance}, and {rows} rows of {sum}").into());
    }
    Ok(format!("4 bookings, {refused} refused: the balance is {balance}, and so is the sum of {rows} rows"))
}

#[tokio::main]
async fn main() -> ExitCode {
    examples::end("ledger", run()).await
}
