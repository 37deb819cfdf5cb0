//! The drill: orders come in at a steady rate, the host is killed again and again, and in the end nothing may be missing.
//!
//! Clients and partner live in this process, which nobody kills; the host is a child. Each kill strikes while at least
//! [`WAITING`] orders wait and [`REQUESTS`] requests are under way.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use examples::process::HostProcess;
use examples::{BoxError, http, in_one_line};
use reqwest::Url;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::host::View;
use crate::partner::{self, Entry, Ledger, Partner, now};
use crate::verdict::{Outage, Report};

/// How many orders must be waiting for the host to be worth killing.
pub(crate) const WAITING: usize = 20;
/// How many requests must be under way as well.
const REQUESTS: usize = 2;
/// How many orders a kill needs: they come in while the host is down and starts again, and then enough of them wait.
pub(crate) const ORDERS_PER_KILL: usize = 50;
/// How long an order waits for its callback.
const ORDER_TIMEOUT: Duration = Duration::from_secs(2);
/// From one order to the next.
const INTERVAL: Duration = Duration::from_millis(35);
/// How long one request to the host may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How long a kill and the start after it may take.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// How long the last orders may take to settle.
const SETTLING: Duration = Duration::from_secs(30);

/// What the drill was asked to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) orders: usize,
    pub(crate) kills: usize,
    pub(crate) seed: u64,
    pub(crate) quiet: bool,
}

/// Runs the drill with its data in `data`.
pub(crate) async fn run(options: &Options, data: &Path) -> Result<Report, BoxError> {
    let plans = partner::plans(options.orders, options.seed, ORDER_TIMEOUT);
    let entries = plans.into_iter().enumerate().map(|(n, plan)| (format!("order-{n:04}"), Entry::new(plan))).collect();
    let ledger = Arc::new(Ledger::new(entries, ORDER_TIMEOUT));
    let http = http::client(REQUEST_LIMIT);

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let partner_url = Url::parse(&format!("http://{}/orders", listener.local_addr()?))?;
    let partner = Partner { ledger: ledger.clone(), http: http.clone() };
    tokio::spawn(http::serve(listener, partner.routes(), std::future::pending()));

    let args =
        ["serve".into(), "--data".into(), data.join("host-0").into(), "--partner".into(), partner_url.as_str().into()];
    let mut host = HostProcess::new(args)?;
    host.start().await?;
    let say = |line: String| {
        if !options.quiet {
            println!("{line}");
        }
    };
    say(format!("the host listens at {}; an order every {} ms", host.url(), INTERVAL.as_millis()));

    // Whatever is not done by then is not waited for; the verdict says what is missing.
    let times = |each: Duration, n: usize| each.saturating_mul(u32::try_from(n).unwrap_or(u32::MAX));
    let deadline = Instant::now() + times(INTERVAL, options.orders) + times(KILL_LIMIT, options.kills) + SETTLING;
    let url = host.url();
    let orders: Vec<String> = ledger.entries().keys().cloned().collect();
    let placing = tokio::spawn(place_all(orders.clone(), ledger.clone(), http.clone(), url.clone(), deadline));
    let mut random = fastrand::Rng::with_seed(options.seed);
    let mut outages = Vec::new();
    for kill in 1..=options.kills {
        // Evenly over the orders, the last one while there are still some to come.
        let after = options.orders * kill / (options.kills + 1);
        let Some((waiting, requests)) = worth_killing(&ledger, after, deadline, &mut random).await else { break };
        let from = now();
        let pid = host.kill().await?;
        say(format!(
            "kill {kill}: process {pid} is dead, with {waiting} orders waiting and {requests} requests under way"
        ));
        sleep(Duration::from_millis(random.u64(200..700))).await;
        host.start().await?;
        let outage = Outage { from, until: now() };
        say(format!("        back after {} ms", outage.until.since(from).as_millis()));
        outages.push(outage);
    }
    placing.await?;

    say("all orders are placed; waiting for the last to be decided".to_owned());
    while !ledger.is_settled() && Instant::now() < deadline {
        sleep(Duration::from_millis(20)).await;
    }
    let mut views = BTreeMap::new();
    for order in orders {
        if let Some(view) = look(&http, &url, &order, deadline).await? {
            views.insert(order, view);
        }
    }
    let ended = host.stop().await?;
    if !ended.success() {
        return Err(format!("asked to stop, the host ended with {ended}").into());
    }
    let entries = ledger.entries().clone();
    Ok(Report::new(entries, views, outages, options.kills, ORDER_TIMEOUT))
}

/// Waits for a moment when `after` orders are placed, [`WAITING`] of them wait and [`REQUESTS`] requests are under way, and
/// says how many orders and requests there are; `None` if everything is over and there was no such moment.
async fn worth_killing(
    ledger: &Ledger,
    after: usize,
    deadline: Instant,
    random: &mut fastrand::Rng,
) -> Option<(usize, usize)> {
    while !ledger.is_settled() && Instant::now() < deadline {
        // A few milliseconds drawn by chance, so that a kill strikes at any point of a request's way.
        sleep(Duration::from_micros(random.u64(500..7_000))).await;
        let (waiting, requests) = (ledger.waiting(), ledger.in_flight());
        if ledger.placed() >= after && waiting >= WAITING && requests >= REQUESTS {
            return Some((waiting, requests));
        }
    }
    None
}

/// Sends every order at its time, each until it is acknowledged or `deadline` is over.
async fn place_all(orders: Vec<String>, ledger: Arc<Ledger>, http: reqwest::Client, host: Url, deadline: Instant) {
    let begin = Instant::now();
    let mut placing = tokio::task::JoinSet::new();
    for (n, order) in (0..).zip(orders) {
        sleep_until(begin + INTERVAL * n).await;
        placing.spawn(place(order, ledger.clone(), http.clone(), host.clone()));
    }
    // Those that still try are ended with the set.
    let _ = timeout_at(deadline, placing.join_all()).await;
}

async fn place(order: String, ledger: Arc<Ledger>, http: reqwest::Client, host: Url) {
    let timeout = ORDER_TIMEOUT.as_millis();
    let url = format!("{host}orders/{order}?timeout_ms={timeout}");
    ledger.note(&order, |entry| entry.posted = Some(now()));
    // An order placed twice is one order, so whatever went wrong, it may be sent again.
    loop {
        let answer = ledger.send(http.post(&url)).await;
        let acknowledged = ledger.note(&order, |entry| {
            entry.placing.push(answer);
            entry.is_acknowledged()
        });
        if acknowledged == Some(true) {
            return;
        }
        sleep(Duration::from_millis(fastrand::u64(30..90))).await;
    }
}

/// What the host says of an order, once it is decided or time is up; `None` if the host does not know it.
async fn look(http: &reqwest::Client, host: &Url, order: &str, deadline: Instant) -> Result<Option<View>, BoxError> {
    loop {
        let response = http.get(format!("{host}orders/{order}")).send().await;
        match response {
            Ok(found) if found.status() == StatusCode::OK => {
                let view: View = found.json().await?;
                if !view.decisions.is_empty() || Instant::now() >= deadline {
                    return Ok(Some(view));
                }
            }
            Ok(missing) if missing.status() == StatusCode::NOT_FOUND => return Ok(None),
            Ok(other) if Instant::now() >= deadline => return Err(format!("{order}: {}", other.status()).into()),
            Err(error) if Instant::now() >= deadline => return Err(format!("{order}: {}", in_one_line(&error)).into()),
            Ok(_) | Err(_) => {}
        }
        sleep(Duration::from_millis(20)).await;
    }
}
