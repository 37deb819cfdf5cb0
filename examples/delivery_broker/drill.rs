//! The drill: two regions open, orders come in, and meanwhile hosts are killed, and once the next version is deployed over them.
//!
//! The app and the partner live in this process, which nobody kills; each host is a child. Each kill, and the deploy, strikes while at
//! least [`WAITING`] orders wait. A host that was killed comes back when the others, if there are any, have gone on with what it had. Calls
//! come in through any host, also through one that is away: then they are sent again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use examples::process::HostProcess;
use examples::{BoxError, client, http};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

use crate::doors::Doors;
use crate::fakes::{self, Entry, Fakes};
use crate::hosts::Hosts;
use crate::service::{BROKER, View};
use crate::store::Kind;
use crate::verdict::Report;

/// The orders that must be waiting for a kill to be worth it.
const WAITING: usize = 5;
/// The limit of one request to a host.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// The time from one look of the operator to the next.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The options of the drill.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) orders: usize,
    pub(crate) kills: usize,
    pub(crate) limit: Duration,
    pub(crate) seed: u64,
    pub(crate) quiet: bool,
    pub(crate) store: Kind,
    pub(crate) hosts: usize,
}

/// Runs the drill with its data in `data`.
pub(crate) async fn run(options: &Options, data: &Path) -> Result<Report, BoxError> {
    let say = |line: String| {
        if !options.quiet {
            println!("{line}");
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let world = format!("http://{}/", listener.local_addr()?);
    let began = Instant::now();
    let limit = options.limit.as_millis().to_string();
    let args = ["serve", "--world", &world, "--limit-ms", &limit].map(str::to_owned);
    let mut service = Hosts::start(options.store, options.hosts, data, args.into()).await?;
    let doors = Doors::new(service.hosts.iter().map(HostProcess::url));
    let fakes = Fakes {
        ledger: Arc::new(Mutex::new(fakes::plans(options.orders, options.seed))),
        http: client(REQUEST_LIMIT),
        doors: doors.clone(),
        limit: options.limit,
        // So that about twenty wait for an answer at any time.
        interval: options.limit / 16,
        known: Arc::default(),
        allowed: Arc::new(AtomicUsize::new(options.orders * 2 / (options.kills + 2))),
    };
    // Before the world is there the broker cannot introduce itself, and tries again.
    tokio::spawn(http::serve(listener, fakes.clone().routes(), std::future::pending()));
    let operator = Operator { fakes: fakes.clone(), doors, quiet: options.quiet };
    let watching = tokio::spawn(operator.clone().watch());

    // Whatever is not done by then is not waited for; the verdict says what is missing.
    let orders = u32::try_from(options.orders).unwrap_or(u32::MAX);
    let deadline = began + (options.limit / 16).saturating_mul(orders) + options.limit * 4 + Duration::from_secs(30);
    let mut random = fastrand::Rng::with_seed(options.seed);
    let (mut killed, mut deployed) = (0, 0);
    // The deploy comes in the middle.
    let events = options.kills + 1;
    for event in 1..=events {
        let after = options.orders * event / (events + 1);
        let Some(waiting) = worth_it(&fakes, after, deadline).await else {
            fakes.allowed.store(options.orders, Relaxed);
            break;
        };
        let at = began.elapsed().as_secs_f32();
        if event == events.div_ceil(2) {
            for host in &mut service.hosts {
                host.drain().await?;
                host.add_args(["--version".into(), "2".into()]);
                host.start().await?;
            }
            deployed += 1;
            say(format!("{at:5.1} s: version 2 was deployed with {waiting} orders waiting"));
        } else {
            let host = random.usize(..service.hosts.len());
            let pid = service.hosts[host].kill().await?;
            sleep(service.away(&mut random)).await;
            service.hosts[host].start().await?;
            killed += 1;
            say(format!("{at:5.1} s: host {host}, process {pid}, died with {waiting} orders waiting, and is back"));
        }
        fakes.allowed.store(options.orders * (event + 2) / (events + 1), Relaxed);
    }
    let mut said = 0;
    while Instant::now() < deadline {
        let (decided, all) = decided(&fakes);
        if decided == all {
            break;
        }
        if decided >= said + all.div_ceil(8) {
            said = decided;
            say(format!("{:5.1} s: {decided} of {all} orders are decided", began.elapsed().as_secs_f32()));
        }
        sleep(Duration::from_millis(20)).await;
    }
    watching.abort();
    let mut found = BTreeMap::new();
    let ledger: BTreeMap<String, Entry> = fakes.ledger().clone();
    for id in ledger.into_keys() {
        // Its last step may still be under way.
        let mut view = operator.look("order", &id).await;
        while view.as_ref().is_none_or(|view| view.ended.is_none()) && Instant::now() < deadline {
            operator.resume("order", &id, view.as_ref()).await;
            sleep(Duration::from_millis(20)).await;
            view = operator.look("order", &id).await;
        }
        found.insert(id, view);
    }
    service.stop().await?;
    // What came last is in the ledgers too.
    let ledger = fakes.ledger();
    let orders = found.into_iter().filter_map(|(id, view)| Some((id.clone(), (ledger.get(&id)?.clone(), view))));
    let (kills, deploys) = ((killed, options.kills), (deployed, 1));
    Ok(Report { orders: orders.collect(), limit: options.limit, kills, deploys })
}

/// The orders that are decided, as far as the app knows, and all orders.
fn decided(fakes: &Fakes) -> (usize, usize) {
    let ledger = fakes.ledger();
    (ledger.values().filter(|entry| entry.is_decided()).count(), ledger.len())
}

/// Waits for a moment when `after` orders have been placed and [`WAITING`] of them wait for an answer, and says how many do; `None` if
/// everything is over and there was no such moment.
async fn worth_it(fakes: &Fakes, after: usize, deadline: Instant) -> Option<usize> {
    while Instant::now() < deadline {
        // A few milliseconds drawn by chance, so that a kill strikes at any point.
        sleep(Duration::from_micros(fastrand::u64(500..7_000))).await;
        let (placed, waiting) = {
            let ledger = fakes.ledger();
            let waits = |entry: &&Entry| entry.asked.is_some() && !entry.is_decided();
            (ledger.values().filter(|entry| entry.is_placed).count(), ledger.values().filter(waits).count())
        };
        if placed >= after && waiting >= WAITING {
            return Some(waiting);
        }
    }
    None
}

/// Somebody who looks at flows now and then, and resumes one that is blocked: here because its step ran in processes that were killed,
/// which was not its doing.
#[derive(Debug, Clone)]
struct Operator {
    fakes: Fakes,
    doors: Doors,
    quiet: bool,
}

impl Operator {
    async fn watch(self) {
        loop {
            sleep(LOOK_AGAIN).await;
            let orders = self.fakes.ledger().clone().into_iter();
            let undecided =
                orders.filter(|(_, entry)| entry.asked.is_some() && !entry.is_decided()).map(|(id, _)| ("order", id));
            for (name, id) in std::iter::once(("broker", BROKER.to_owned())).chain(undecided) {
                let view = self.look(name, &id).await;
                self.resume(name, &id, view.as_ref()).await;
            }
        }
    }

    async fn look(&self, name: &str, id: &str) -> Option<View> {
        let url = format!("{}flows/{name}/{id}", self.doors.any().url);
        self.fakes.http.get(url).send().await.ok()?.error_for_status().ok()?.json().await.ok()
    }

    async fn resume(&self, name: &str, id: &str, view: Option<&View>) {
        let Some(why) = view.and_then(|view| view.blocked.as_ref()) else { return };
        if !self.quiet {
            println!("         {name} {id} is blocked ({why}), and is resumed");
        }
        let _ = self.fakes.http.post(format!("{}flows/{name}/{id}/resume", self.doors.any().url)).send().await;
    }
}
