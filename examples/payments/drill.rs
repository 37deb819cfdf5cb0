//! The drill: orders come in, half of them for either style of script, and meanwhile the host is killed again and again while calls to
//! Stripe are in flight; once, while it is down, a script is changed on disk.
//!
//! The fake Stripe and the shop's clients live in this process, which nobody kills; each host is a child. Of several, one that was killed
//! comes back when the others have gone on with what it had.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::http::StatusCode;
use examples::process::HostProcess;
use examples::{BoxError, client, http};
use reqwest::Url;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::doors::Doors;
use crate::fake::Stripe;
use crate::fake::books::{Books, Dealing};
use crate::fake::hooks;
use crate::hosts::Hosts;
use crate::library;
use crate::plan::{self, Plan, Style};
use crate::service::{SCRIPT, Start};
use crate::store::Kind;
use crate::stripe::Account;
use crate::verdict::{self, Report, Row, View};
use crate::{FAKE_KEY, FAKE_SECRET};

/// The calls to Stripe that must be in flight, and the payments under way, for a kill to be worth it.
const IN_FLIGHT: usize = 2;
const UNDER_WAY: usize = 5;
/// From one order to the next.
const INTERVAL: Duration = Duration::from_millis(60);
/// The limit of one request to a host.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// The time that Stripe has to say that an order is paid: the fake, and the real one, whose events somebody forwards.
const FAKES_LIMIT: (Duration, &str) = (Duration::from_secs(5), "5s");
const STRIPES_LIMIT: (Duration, &str) = (Duration::from_secs(120), "2m");
/// The limit for the last orders to end, beyond what they wait for.
const SETTLING: Duration = Duration::from_secs(60);
/// The time from one look of the operator to the next.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Every so many orders have a subscription.
const SUBSCRIBES: usize = 5;

/// The options of the drill.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) orders: usize,
    pub(crate) kills: usize,
    pub(crate) seed: u64,
    pub(crate) quiet: bool,
    pub(crate) store: Kind,
    pub(crate) hosts: usize,
    /// The host is broken: each attempt of a call has a key of its own.
    pub(crate) is_broken: bool,
    /// Stripe's own URL, and the API key there; without it there is the fake.
    pub(crate) stripe: Option<(Url, String)>,
}

/// The state of a deploy: which edition of the changed script an order begins with.
const OLD: usize = 0;
const CHANGING: usize = 1;
const NEW: usize = 2;

/// An order as far as the shop knows of it.
#[derive(Debug, Clone, Default)]
struct Placed {
    edition: Option<&'static str>,
    view: Option<View>,
}

/// The service as its clients see it, and its operator.
#[derive(Debug, Clone)]
struct Shop {
    http: reqwest::Client,
    doors: Doors,
    orders: Arc<Mutex<BTreeMap<String, Placed>>>,
    /// The number of orders that may be placed by now: there are to be some left for the next kill, however long that takes.
    allowed: Arc<AtomicUsize>,
    /// The progress of the deploy.
    edition: Arc<AtomicUsize>,
    quiet: bool,
}

impl Shop {
    fn orders(&self) -> MutexGuard<'_, BTreeMap<String, Placed>> {
        self.orders.lock().expect("nobody panics while writing it")
    }

    /// Begins a flow, again and again until that is durable: the same one again is the same flow.
    async fn start(&self, id: &str, script: &str, arguments: Map<String, Value>) -> Result<(), BoxError> {
        let start = Start { script: script.to_owned(), arguments };
        loop {
            let url = format!("{}scripts/{id}", self.doors.any().url);
            match self.http.post(url).json(&start).send().await {
                Ok(answer) if answer.status() == StatusCode::ACCEPTED => return Ok(()),
                Ok(answer) if answer.status().is_client_error() => {
                    return Err(format!("{script} is refused: {}", answer.text().await?).into());
                }
                _ => sleep(Duration::from_millis(fastrand::u64(30..90))).await,
            }
        }
    }

    async fn look(&self, id: &str) -> Option<View> {
        let url = format!("{}flows/{SCRIPT}/{id}", self.doors.any().url);
        self.http.get(url).send().await.ok()?.error_for_status().ok()?.json().await.ok()
    }

    /// The result of a flow of one of these styles that makes a catalog.
    async fn catalog(&self, style: Style) -> Result<Value, BoxError> {
        let script = match style {
            Style::Linear => "catalog",
            Style::Answers => "catalog_by_answers",
        };
        self.result(script, json!({"season": plan::HOSTILE[0]})).await
    }

    /// Runs a script to its end, under its own name.
    async fn result(&self, script: &str, arguments: Value) -> Result<Value, BoxError> {
        self.start(script, script, arguments.as_object().cloned().unwrap_or_default()).await?;
        loop {
            match self.look(script).await {
                Some(View { result: Some(result), .. }) => return Ok(result),
                Some(view) if view.is_over() || view.status == "blocked" => {
                    return Err(format!("{script} has come to nothing: {view:?}").into());
                }
                _ => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn place(self, plan: Plan) -> Result<(), BoxError> {
        let arguments = json!({"order": plan.order}).as_object().cloned().unwrap_or_default();
        let before = self.edition.load(Relaxed);
        self.start(&plan.order.id, plan.style.script(), arguments).await?;
        let edition = match (plan.style, before, self.edition.load(Relaxed)) {
            (Style::Answers, ..) | (_, OLD, OLD) => Some("1"),
            (_, NEW, NEW) => Some("2"),
            // Meanwhile it was changed.
            _ => None,
        };
        self.orders().insert(plan.order.id, Placed { edition, view: None });
        Ok(())
    }

    /// Places all orders, each in its time.
    async fn place_all(self, plans: Vec<Plan>) -> Result<(), BoxError> {
        let mut placing = JoinSet::new();
        for (n, plan) in plans.into_iter().enumerate() {
            while n >= self.allowed.load(Relaxed) {
                sleep(Duration::from_millis(5)).await;
            }
            placing.spawn(self.clone().place(plan));
            sleep(INTERVAL).await;
        }
        while let Some(placed) = placing.join_next().await {
            placed??;
        }
        Ok(())
    }

    /// Looks at all that is under way, again and again, and resumes what is blocked: here because its step ran in processes that were
    /// killed, which was not its doing.
    async fn watch(self) {
        loop {
            sleep(LOOK_AGAIN).await;
            let going: Vec<_> = {
                let orders = self.orders();
                let is_going = |placed: &Placed| placed.view.as_ref().is_none_or(|view| !view.is_over());
                orders.iter().filter(|(_, placed)| is_going(placed)).map(|(id, _)| id.clone()).collect()
            };
            for id in going {
                let view = self.look(&id).await;
                if let (Some(placed), Some(view)) = (self.orders().get_mut(&id), view) {
                    placed.view = Some(view);
                }
            }
            let Ok(answer) = self.http.post(format!("{}scripts", self.doors.any().url)).send().await else { continue };
            let resumed: Vec<(String, String)> = answer.json().await.unwrap_or_default();
            for (id, why) in resumed.into_iter().filter(|_| !self.quiet) {
                println!("         {id} is blocked ({why}), and is resumed");
            }
        }
    }

    /// The orders that were placed, and those that are over.
    fn count(&self) -> (usize, usize) {
        let orders = self.orders();
        let is_over = |placed: &&Placed| placed.view.as_ref().is_some_and(View::is_over);
        (orders.len(), orders.values().filter(is_over).count())
    }
}

/// Runs the drill with its data in `data`.
pub(crate) async fn run(options: &Options, data: &Path) -> Result<Report, BoxError> {
    let say = |line: String| {
        if !options.quiet {
            println!("{line}");
        }
    };
    let began = Instant::now();
    let (flows, canary) = (data.join("flows"), data.join("canary"));
    library::write(&flows)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let fakes_url = format!("http://{}/", listener.local_addr()?);
    let to = match &options.stripe {
        Some((url, _)) => ["--stripe-url".to_owned(), url.to_string()],
        None => ["--fake-url".to_owned(), fakes_url],
    };
    let mut args = vec!["serve".to_owned(), "--flows".to_owned(), flows.display().to_string()];
    args.extend(["--canary".to_owned(), canary.display().to_string()].into_iter().chain(to));
    args.extend(options.is_broken.then(|| "--broken".to_owned()));
    let mut service = Hosts::start(options.store, options.hosts, data, args).await?;
    let doors = Doors::new(service.hosts.iter().map(HostProcess::url));

    let (limit, limit_in_words) = if options.stripe.is_some() { STRIPES_LIMIT } else { FAKES_LIMIT };
    let mut plans = plan::plans(options.orders, options.seed, limit_in_words);
    if options.stripe.is_some() {
        // Of another run's orders nothing may count as one of ours.
        let run = fastrand::u32(..);
        plans.iter_mut().for_each(|plan| plan.is_by_stripe(run));
    }
    let dealings = plans.iter().map(|plan| {
        let why = plan.why.clone().unwrap_or_default();
        (plan.order.id.clone(), Dealing::new(plan.hook, why))
    });
    let books = Books::new(dealings.collect());
    let http = client(REQUEST_LIMIT);
    let stripe = Stripe::new(books, http.clone(), doors.clone(), FAKE_KEY, FAKE_SECRET, options.seed);
    match &options.stripe {
        None => drop(tokio::spawn(http::serve(listener, stripe.clone().routes(), std::future::pending()))),
        Some(_) => say(format!("to be run now: stripe listen --forward-to {}{}", doors.any().url, hooks::PATH)),
    }
    let shop = Shop {
        http,
        doors,
        orders: Arc::default(),
        allowed: Arc::new(AtomicUsize::new(options.orders * 2 / (options.kills + 2))),
        edition: Arc::new(AtomicUsize::new(OLD)),
        quiet: options.quiet,
    };
    shop.result("control", json!({})).await?;
    let (linear, by_answers) = tokio::try_join!(shop.catalog(Style::Linear), shop.catalog(Style::Answers))?;
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    for plan in plans.iter_mut().step_by(SUBSCRIBES) {
        let catalog = if plan.style == Style::Linear { &linear } else { &by_answers };
        (plan.order.price, plan.order.coupon) = (text(&catalog["price"]), text(&catalog["coupon"]));
    }
    say(format!(
        "{:5.1} s: the catalog is there; an order every {} ms",
        began.elapsed().as_secs_f32(),
        INTERVAL.as_millis()
    ));

    // Whatever is not done by then is not waited for; the verdict says what is missing.
    let orders = u32::try_from(options.orders).unwrap_or(u32::MAX);
    let deadline = Instant::now() + INTERVAL.saturating_mul(orders) + limit * 4 + SETTLING;
    let placing = tokio::spawn(shop.clone().place_all(plans.clone()));
    let watching = tokio::spawn(shop.clone().watch());
    let mut random = fastrand::Rng::with_seed(options.seed);
    let mut killed = 0;
    for kill in 1..=options.kills {
        let after = options.orders * kill / (options.kills + 1);
        let in_flight = || if options.stripe.is_some() { IN_FLIGHT } else { stripe.in_flight.load(Relaxed) };
        let Some((calls, under_way)) = worth_it(&shop, in_flight, after, deadline, &mut random).await else {
            shop.allowed.store(options.orders, Relaxed);
            break;
        };
        let at = began.elapsed().as_secs_f32();
        let is_deploy = kill == options.kills.div_ceil(2);
        let host = random.usize(..service.hosts.len());
        if is_deploy {
            shop.edition.store(CHANGING, Relaxed);
        }
        let pid = service.hosts[host].kill().await?;
        if is_deploy {
            library::change(&flows)?;
        }
        sleep(service.away(&mut random)).await;
        service.hosts[host].start().await?;
        killed += 1;
        if is_deploy {
            shop.edition.store(NEW, Relaxed);
        }
        let changed = if is_deploy { "; meanwhile a script was changed on disk" } else { "" };
        say(format!(
            "{at:5.1} s: host {host}, process {pid}, died with {calls} calls in flight and {under_way} payments under way, and is back{changed}"
        ));
        shop.allowed.store(options.orders * (kill + 2) / (options.kills + 1), Relaxed);
    }
    let mut said = 0;
    while Instant::now() < deadline && !(placing.is_finished() && shop.count().1 == options.orders) {
        let (_, over) = shop.count();
        if over >= said + options.orders.div_ceil(8) {
            said = over;
            say(format!("{:5.1} s: {over} of {} payments are over", began.elapsed().as_secs_f32(), options.orders));
        }
        sleep(Duration::from_millis(20)).await;
    }
    watching.abort();
    if placing.is_finished() {
        placing.await??;
    } else {
        placing.abort();
    }
    service.stop().await?;
    say(format!("{:5.1} s: all is over, and the host has ended", began.elapsed().as_secs_f32()));
    if options.stripe.is_none() {
        say(weathers(&stripe));
    }

    let placed = shop.orders().clone();
    let mut rows = Vec::new();
    for plan in plans {
        let account = match &options.stripe {
            None => account(&stripe.books(), &plan.order.id),
            Some((url, key)) => asked(&Account::new(crate::wire::Wire::new(url)?, key), &plan.order.id).await?,
        };
        let Placed { edition, view } = placed.get(&plan.order.id).cloned().unwrap_or_default();
        rows.push(Row { plan, edition, account, view });
    }
    let sung = std::fs::read_to_string(&canary).unwrap_or_default();
    let control = sung.lines().filter(|line| *line == "control").count();
    Ok(Report { rows, limit, kills: (killed, options.kills), canary: (control, sung.lines().count() - control) })
}

/// Waits for a moment when `after` orders have been placed, [`UNDER_WAY`] of them are not over, and [`IN_FLIGHT`] calls to Stripe are in
/// flight, and says how many calls and orders there are; `None` if everything is over and there was no such moment.
async fn worth_it(
    shop: &Shop,
    in_flight: impl Fn() -> usize,
    after: usize,
    deadline: Instant,
    random: &mut fastrand::Rng,
) -> Option<(usize, usize)> {
    while Instant::now() < deadline {
        // A few milliseconds drawn by chance, so that a kill strikes at any point of a call's way.
        sleep(Duration::from_micros(random.u64(500..7_000))).await;
        let ((placed, over), calls) = (shop.count(), in_flight());
        if placed >= after && placed - over >= UNDER_WAY && calls >= IN_FLIGHT {
            return Some((calls, placed - over));
        }
    }
    None
}

/// The fake's books about one order.
fn account(books: &Books, order: &str) -> verdict::Account {
    let of = |object| books.of(object).filter(|known| known["metadata"]["order"] == order).cloned().collect();
    let dealing = books.dealings.get(order);
    verdict::Account {
        customers: of("customer"),
        intents: of("payment_intent"),
        refunds: of("refund"),
        subscriptions: of("subscription"),
        charged: dealing.and_then(|dealing| dealing.charged),
        acknowledged: dealing.and_then(|dealing| dealing.acknowledged),
        was_fooled: dealing.is_some_and(|dealing| dealing.was_fooled),
    }
}

/// Stripe's own books about one order.
async fn asked(stripe: &Account, order: &str) -> Result<verdict::Account, BoxError> {
    let list = async |what: &str, filter: Value| {
        let page = stripe.get(&format!("/v1/{what}?limit=100&{}", crate::form::encode(&filter))).await;
        let page = page.map_err(|error| format!("Stripe does not say what it has of {order}: {error}"))?;
        Ok::<_, BoxError>(page["data"].as_array().cloned().unwrap_or_default())
    };
    let customers = list("customers", json!({"email": format!("{order}@example.com")})).await?;
    let mut account = verdict::Account { customers, ..verdict::Account::default() };
    for customer in account.customers.clone() {
        account.intents.extend(list("payment_intents", json!({"customer": customer["id"]})).await?);
        account.subscriptions.extend(list("subscriptions", json!({"customer": customer["id"]})).await?);
    }
    for intent in account.intents.clone() {
        account.refunds.extend(list("refunds", json!({"payment_intent": intent["id"]})).await?);
    }
    Ok(account)
}

/// One line that says what the fake did to the requests for payments.
fn weathers(stripe: &Stripe) -> String {
    let met = stripe.met.lock().expect("nobody panics while counting");
    let counts: Vec<_> = met.weathers.iter().map(|(weather, times)| format!("{times} {weather}")).collect();
    format!("requests that the fake met: {}", counts.join(", "))
}
