//! The drill: orders come in at a steady rate, hosts and their store are killed again and again, and in the end nothing may be missing.
//!
//! Clients and partner live in this process, which nobody kills; each host is a child. Each kill strikes while at least
//! [`WAITING`] orders wait and [`REQUESTS`] requests are under way. Requests come in through any host.
//!
//! A host of a fleet that is killed stays away for three leases: the others have its orders meanwhile. On the way one more host joins
//! and another one is drained. One host is never killed, and most requests come in through its door: none of them may be refused or cut off.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use examples::process::HostProcess;
use examples::{BoxError, client, http, in_one_line};
use reqwest::Url;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::doors::Doors;
use crate::partner::{self, Answer, Entry, Ledger, Partner, now};
use crate::server::Private;
use crate::service::View;
use crate::store::{Kind, LEASE};
use crate::verdict::{Changes, Kills, Outage, Report, Victim};

/// The orders that must be waiting for a kill to be worth it.
pub(crate) const WAITING: usize = 20;
/// The requests that must be under way as well.
const REQUESTS: usize = 2;
/// The time that an order waits for its callback: longer than it takes until others go on with what a dead host had, so that its partner is told
/// however that goes.
const ORDER_TIMEOUT: Duration = Duration::from_secs(4);
/// From one order to the next.
const INTERVAL: Duration = Duration::from_millis(35);
/// The limit of one request to a host: a server that was killed and recovers takes seconds.
const REQUEST_LIMIT: Duration = Duration::from_secs(15);
/// The limit of a kill and the start after it.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// The limit for the last orders to settle.
const SETTLING: Duration = Duration::from_secs(30);

/// The options of the drill.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) orders: usize,
    pub(crate) kills: usize,
    pub(crate) seed: u64,
    pub(crate) quiet: bool,
    pub(crate) store: Kind,
    pub(crate) hosts: usize,
    /// The server to use; without it, one of the drill's own.
    pub(crate) url: Option<String>,
    /// The service is the one that is written as a flow.
    pub(crate) is_flow: bool,
}

impl Options {
    /// Tells whether there are several hosts.
    pub(crate) fn is_fleet(&self) -> bool {
        self.hosts > 1
    }

    /// The number of kills of each kind. A server that is the drill's own is killed about a third as often as hosts are.
    pub(crate) fn all_kills(&self) -> Kills {
        let own_server = self.store != Kind::Fjall && self.url.is_none();
        Kills { of_hosts: self.kills, of_store: own_server.then_some(self.kills.div_ceil(3)) }
    }

    /// The number of orders that is needed: they come in while what was killed is down and starts again, and then enough of them wait.
    pub(crate) fn orders_needed(&self) -> usize {
        let Kills { of_hosts, of_store } = self.all_kills();
        // As many come in three leases, and some more until it is back; and while one joins and one is drained.
        let (per_kill, of_changes) = if self.is_fleet() { (190, 60) } else { (50, 0) };
        let of_store = of_store.unwrap_or(0).saturating_mul(25);
        of_hosts.saturating_mul(per_kill).saturating_add(of_store).saturating_add(of_changes)
    }
}

/// The hosts, and the server they share if they share one.
struct Service {
    /// Each with the arguments that make it one of these; drained ones are gone.
    hosts: Vec<HostProcess>,
    /// The arguments that all hosts have.
    shared: Vec<OsString>,
    /// The number of hosts that there have been.
    named: usize,
    doors: Doors,
    /// The server that the drill may kill.
    server: Option<Private>,
}

impl Service {
    /// Starts the server, if there is to be one, and the hosts.
    async fn start(options: &Options, data: &Path, partner: &Url) -> Result<Service, BoxError> {
        let mut shared: Vec<OsString> = ["serve", "--partner", partner.as_str()].map(Into::into).into();
        shared.extend(options.is_flow.then(|| "--flow".into()));
        let mut server = None;
        if options.store == Kind::Fjall {
            shared.extend(["--data".into(), data.join("host-0").into()]);
        } else {
            let url = match &options.url {
                Some(url) => url.clone(),
                None => server.insert(Private::start(options.store).await?).url(),
            };
            // A run of its own: whatever others keep in that server is not touched.
            let space = format!("webhook_timeout_{:08x}", fastrand::u32(..));
            if server.is_none() && !options.quiet {
                println!("the orders are kept under {space} in the server, and are left there");
            }
            shared.extend(["--store", options.store.name(), "--url", &url, "--space", &space].map(Into::into));
        }
        let mut service = Service { hosts: vec![], shared, named: 0, doors: Doors::new([]), server };
        // All at once, as a deployment does: the first ones wait a moment for the others.
        for _ in 0..options.hosts {
            let host = service.host(options.store != Kind::Fjall)?;
            service.hosts.push(host);
            service.named += 1;
            if service.named == 1 && options.is_fleet() {
                // The partner knows the fleet by one address, here that of the host that stays.
                service.shared.extend(["--public".into(), service.hosts[0].url().to_string().into()]);
                let public = service.shared[service.shared.len() - 2..].to_vec();
                service.hosts[0].add_args(public);
            }
        }
        let starts = service.hosts.iter_mut().map(HostProcess::start);
        for started in futures_util::future::join_all(starts).await {
            started?;
        }
        service.doors = Doors::with_one_that_stays(service.hosts.iter().map(HostProcess::url));
        Ok(service)
    }

    /// One more host, yet to be started. In a fleet it has a name of its own.
    fn host(&self, is_named: bool) -> Result<HostProcess, BoxError> {
        let name = is_named.then(|| ["--name".into(), format!("host-{}", self.named).into()]);
        Ok(HostProcess::new(self.shared.iter().cloned().chain(name.into_iter().flatten()))?)
    }

    /// Kills a host or the server, and starts it again after `down`. Says who it was.
    async fn kill(&mut self, victim: Victim, host: usize, down: Duration) -> Result<(String, Outage), BoxError> {
        let from = now();
        let who = match (victim, &self.server) {
            (Victim::Store, Some(server)) => {
                server.kill().await?;
                sleep(down).await;
                server.restart().await?;
                "the store".to_owned()
            }
            _ => {
                let process = &mut self.hosts[host];
                let pid = process.kill().await?;
                sleep(down).await;
                process.start().await?;
                format!("host {host}, process {pid},")
            }
        };
        Ok((who, Outage { victim, from, until: now() }))
    }

    /// Starts one more host, beside the others.
    async fn add(&mut self) -> Result<(), BoxError> {
        let mut host = self.host(true)?;
        host.start().await?;
        self.named += 1;
        self.doors.open(host.url());
        self.hosts.push(host);
        Ok(())
    }

    /// Has a host drain and end, for good.
    async fn drain(&mut self, host: usize) -> Result<(), BoxError> {
        let mut host = self.hosts.remove(host);
        self.doors.close(&host.url());
        Ok(host.drain().await?)
    }

    /// Asks all hosts to drain and end.
    async fn stop(mut self) -> Result<(), BoxError> {
        for host in &mut self.hosts {
            host.drain().await?;
        }
        Ok(())
    }
}

/// Runs the drill with its data in `data`.
pub(crate) async fn run(options: &Options, data: &Path) -> Result<Report, BoxError> {
    let plans = partner::plans(options.orders, options.seed, ORDER_TIMEOUT);
    let entries = plans.into_iter().enumerate().map(|(n, plan)| (format!("order-{n:04}"), Entry::new(plan))).collect();
    let ledger = Arc::new(Ledger::new(entries, ORDER_TIMEOUT));
    let http = client(REQUEST_LIMIT);

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let partner_url = Url::parse(&format!("http://{}/orders", listener.local_addr()?))?;
    let mut service = Service::start(options, data, &partner_url).await?;
    let doors = service.doors.clone();
    let partner = Partner { ledger: ledger.clone(), http: http.clone(), doors: doors.clone() };
    tokio::spawn(http::serve(listener, partner.routes(), std::future::pending()));
    let say = |line: String| {
        if !options.quiet {
            println!("{line}");
        }
    };
    let addresses: Vec<_> = service.hosts.iter().map(|host| host.url().to_string()).collect();
    let listening = if addresses.len() > 1 { "the hosts listen" } else { "the host listens" };
    say(format!("{listening} at {}; an order every {} ms", addresses.join(" "), INTERVAL.as_millis()));

    // Whatever is not done by then is not waited for; the verdict says what is missing.
    let kills = options.all_kills();
    let all_kills = kills.of_hosts + kills.of_store.unwrap_or(0);
    let times = |each: Duration, n: usize| each.saturating_mul(u32::try_from(n).unwrap_or(u32::MAX));
    // A host of a fleet that is killed is back after that.
    let (away, kill_limit) =
        if options.is_fleet() { (3 * LEASE, KILL_LIMIT + 3 * LEASE) } else { (Duration::ZERO, KILL_LIMIT) };
    let deadline = Instant::now() + times(INTERVAL, options.orders) + times(kill_limit, all_kills) + SETTLING;
    let orders: Vec<String> = ledger.entries().keys().cloned().collect();
    let placing = tokio::spawn(place_all(orders.clone(), ledger.clone(), http.clone(), doors.clone(), deadline));
    let mut random = fastrand::Rng::with_seed(options.seed);
    let (mut outages, mut changes) = (Vec::new(), options.is_fleet().then(Changes::default));
    for kill in 1..=all_kills {
        // Evenly over the orders, the last one while there are still some to come. In a fleet each takes its time.
        let after = match options.is_fleet() {
            true => options.orders * (kill - 1) / all_kills + WAITING,
            false => options.orders * kill / (all_kills + 1),
        };
        let Some((waiting, requests)) = worth_killing(&ledger, after, deadline, &mut random).await else { break };
        // Evenly among the others.
        let of_store = kills.of_store.unwrap_or(0);
        let stores_turn = kill * of_store / all_kills > (kill - 1) * of_store / all_kills;
        let victim = if stores_turn { Victim::Store } else { Victim::Host };
        if let Some(changes) = &mut changes {
            // One joins half way, and one that has been there from the start leaves before the last kill.
            if kill == all_kills / 2 + 1 {
                service.add().await?;
                changes.added += 1;
                say(format!("one more host listens at {}", service.hosts[service.hosts.len() - 1].url()));
            }
            if kill == all_kills {
                service.drain(1).await?;
                changes.drained += 1;
                say("host 1 was drained, and has ended".to_owned());
            }
        }
        let mut down = Duration::from_millis(random.u64(200..700));
        // The first stays where there are others.
        let host = random.usize(usize::from(options.is_fleet())..service.hosts.len());
        if victim == Victim::Host {
            down += away;
        }
        let (who, outage) = service.kill(victim, host, down).await?;
        let down = outage.until.since(outage.from).as_millis();
        say(format!(
            "kill {kill}: {who} died with {waiting} orders waiting and {requests} requests under way; back after {down} ms"
        ));
        outages.push(outage);
    }
    placing.await?;

    say("all orders are placed; waiting for the last to be decided".to_owned());
    while !ledger.is_settled() && Instant::now() < deadline {
        sleep(Duration::from_millis(20)).await;
    }
    let mut views = BTreeMap::new();
    for order in orders {
        let may_be_posted = ledger.note(&order, |entry| entry.placing.contains(&Answer::Status(202))) == Some(true);
        if let Some(view) = look(&ledger, &http, &doors, &order, may_be_posted, deadline, &say).await? {
            views.insert(order, view);
        }
    }
    service.stop().await?;
    let entries = ledger.entries().clone();
    let changes = changes.map(|changes| Changes { at_staying: ledger.at_staying(), ..changes });
    Ok(Report::new(entries, views, outages, kills, changes, ORDER_TIMEOUT))
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
async fn place_all(orders: Vec<String>, ledger: Arc<Ledger>, http: reqwest::Client, doors: Doors, deadline: Instant) {
    let begin = Instant::now();
    let mut placing = tokio::task::JoinSet::new();
    for (n, order) in (0..).zip(orders) {
        sleep_until(begin + INTERVAL * n).await;
        placing.spawn(place(order, ledger.clone(), http.clone(), doors.clone()));
    }
    // Those that still try are ended with the set.
    let _ = timeout_at(deadline, placing.join_all()).await;
}

async fn place(order: String, ledger: Arc<Ledger>, http: reqwest::Client, doors: Doors) {
    let timeout = ORDER_TIMEOUT.as_millis();
    ledger.note(&order, |entry| entry.posted = Some(now()));
    // An order placed twice is one order, so whatever went wrong, it may be sent again.
    loop {
        let door = doors.any();
        let url = format!("{}orders/{order}?timeout_ms={timeout}", door.url);
        let answer = Answer::of(&ledger.send(&door, http.post(&url)).await);
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

/// Asks its host about an order, once it is decided or time is up; `None` if that does not know it. One that `may_be_posted` is waited
/// for: it may be on its way to its host.
async fn look(
    ledger: &Ledger,
    http: &reqwest::Client,
    doors: &Doors,
    order: &str,
    may_be_posted: bool,
    deadline: Instant,
    say: &impl Fn(String),
) -> Result<Option<View>, BoxError> {
    loop {
        let door = doors.any();
        let response = ledger.send(&door, http.get(format!("{}orders/{order}", door.url))).await;
        match response {
            Ok(found) if found.status() == StatusCode::OK => {
                let found: serde_json::Value = found.json().await?;
                if found["due"].is_null() && Instant::now() < deadline {
                    // Resumed as by an operator who has looked: hosts have died while it told the partner, which was not its doing.
                    if let Some(why) = found["blocked"].as_str() {
                        say(format!("{order} is blocked ({why}), and is resumed"));
                        let _ = ledger.send(&door, http.post(format!("{}orders/{order}/resume", door.url))).await;
                    }
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
                let view: View = serde_json::from_value(found)?;
                if !view.decisions.is_empty() || Instant::now() >= deadline {
                    return Ok(Some(view));
                }
            }
            Ok(missing)
                if missing.status() == StatusCode::NOT_FOUND && !(may_be_posted && Instant::now() < deadline) =>
            {
                return Ok(None);
            }
            Ok(other) if Instant::now() >= deadline => return Err(format!("{order}: {}", other.status()).into()),
            Err(error) if Instant::now() >= deadline => return Err(format!("{order}: {}", in_one_line(&error)).into()),
            Ok(_) | Err(_) => {}
        }
        sleep(Duration::from_millis(20)).await;
    }
}
