//! The app and the partner: services of somebody else that answer in time, late, twice, never and out of order, and now and then
//! with an error for what they have done all the same. Each keeps a ledger of its own, in a process that nobody kills.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use serde::Serialize;
use stable_interfaces::Timestamp;
use tokio::time::sleep;

use crate::broker::{Grant, Notice, Order, Region, Taker};
use crate::doors::Doors;

/// The regions that open, in this order.
pub(crate) const REGIONS: [&str; 2] = ["north", "south"];

/// The partner's treatment of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Manner {
    /// Within the limit.
    InTime,
    /// Before it has answered the offer itself.
    Early,
    /// Within the limit, and once more.
    Twice,
    /// After the limit.
    Late,
    Never,
}

/// The app's treatment of a taker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Granting {
    AtOnce,
    /// Before it has answered the request.
    Early,
    Twice,
    /// After half a limit.
    Slow,
    /// The partner does it, and answers with an error, so that it is asked again.
    Unsure,
}

/// The knowledge of both of an order.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) manner: Manner,
    pub(crate) granting: Granting,
    /// The broker has taken it.
    pub(crate) is_placed: bool,
    /// The first time at which the partner was asked, and all URLs that it was given.
    pub(crate) asked: Option<Timestamp>,
    pub(crate) urls: BTreeSet<String>,
    /// The first time at which the partner sent an answer, and the first at which that was acknowledged.
    pub(crate) sent: Option<Timestamp>,
    pub(crate) acknowledged: Option<Timestamp>,
    /// The thanks that the partner had, by key.
    pub(crate) thanks: BTreeSet<String>,
    /// The grants of the app: by the key of the request, who got it.
    pub(crate) granted: BTreeMap<String, String>,
    /// The requests that told the app that there is no taker, by key.
    pub(crate) given_up: BTreeSet<String>,
}

impl Entry {
    pub(crate) fn new(manner: Manner, granting: Granting) -> Entry {
        Entry {
            manner,
            granting,
            is_placed: false,
            asked: None,
            urls: BTreeSet::new(),
            sent: None,
            acknowledged: None,
            thanks: BTreeSet::new(),
            granted: BTreeMap::new(),
            given_up: BTreeSet::new(),
        }
    }

    /// Tells whether the app knows what became of it.
    pub(crate) fn is_decided(&self) -> bool {
        !self.granted.is_empty() || !self.given_up.is_empty()
    }
}

/// Both services.
#[derive(Debug, Clone)]
pub(crate) struct Fakes {
    pub(crate) ledger: Arc<Mutex<BTreeMap<String, Entry>>>,
    pub(crate) http: reqwest::Client,
    pub(crate) doors: Doors,
    pub(crate) limit: Duration,
    /// From one order of a region to the next.
    pub(crate) interval: Duration,
    /// The regions, and the broker itself, that have been told of.
    pub(crate) known: Arc<Mutex<BTreeSet<String>>>,
    /// The number of orders that may be placed by now: there are to be some left when the next host dies, however long that takes.
    pub(crate) allowed: Arc<AtomicUsize>,
}

/// The treatment of `orders`: all manners occur among any five, drawn from `seed`.
pub(crate) fn plans(orders: usize, seed: u64) -> BTreeMap<String, Entry> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut manners: Vec<_> = [Manner::InTime, Manner::Late, Manner::Twice, Manner::Never, Manner::Early]
        .into_iter()
        .cycle()
        .take(orders)
        .collect();
    random.shuffle(&mut manners);
    let grantings = [Granting::AtOnce, Granting::Unsure, Granting::Early, Granting::Twice, Granting::Slow];
    let entries = manners.into_iter().zip(grantings.into_iter().cycle()).enumerate();
    entries.map(|(n, (manner, granting))| (format!("order-{n:03}"), Entry::new(manner, granting))).collect()
}

/// The wall clock, which all processes share.
pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}

impl Fakes {
    pub(crate) fn ledger(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.ledger.lock().expect("nobody panics while writing the ledger")
    }

    /// Both services: `POST /app/{what}` and `POST /partner/{what}`.
    pub(crate) fn routes(self) -> Router {
        Router::new().route("/app/{what}", post(app)).route("/partner/{what}", post(partner)).with_state(self)
    }

    /// Calls the broker, through any of its hosts, again and again until it answers; `sent` is told of the first time.
    async fn call(&self, url: &str, id: String, body: &impl Serialize) -> StatusCode {
        loop {
            let request = self.http.post(self.doors.through_any(url).0).header("idempotency-key", &id).json(body);
            if let Ok(answer) = request.send().await
                && !answer.status().is_server_error()
            {
                return answer.status();
            }
            sleep(Duration::from_millis(fastrand::u64(30..90))).await;
        }
    }

    /// Opens all regions, the first of them twice.
    async fn open(self, url: String) {
        for region in REGIONS.iter().chain(&REGIONS[..1]) {
            self.call(&url, format!("open {region}"), &Region { region: (*region).to_owned() }).await;
            sleep(self.interval).await;
        }
    }

    /// Places the orders of a region, some of them twice, and not in order.
    async fn place_all(self, region: String, url: String) {
        let at = REGIONS.iter().position(|known| *known == region).unwrap_or_default();
        let mut orders: Vec<String> = self.ledger().keys().skip(at).step_by(REGIONS.len()).cloned().collect();
        for pair in orders.chunks_mut(2) {
            pair.reverse();
        }
        for (n, id) in orders.into_iter().enumerate() {
            while n * REGIONS.len() >= self.allowed.load(Relaxed) {
                sleep(Duration::from_millis(5)).await;
            }
            let (fakes, url, region) = (self.clone(), url.clone(), region.clone());
            tokio::spawn(async move {
                let order = Order { id: id.clone(), region };
                for _ in 0..=usize::from(n % 7 == 0) {
                    let status = fakes.call(&url, id.clone(), &order).await;
                    if let Some(entry) = fakes.ledger().get_mut(&id) {
                        entry.is_placed |= status.is_success();
                    }
                }
            });
            sleep(self.interval).await;
        }
    }

    /// Answers an offer.
    async fn answer(self, order: String, url: String) {
        let taker = Taker { by: format!("rider of {order}") };
        let sent = now();
        let status = self.call(&url, format!("answer to {order}"), &taker).await;
        if let Some(entry) = self.ledger().get_mut(&order) {
            entry.sent.get_or_insert(sent);
            if status.is_success() {
                entry.acknowledged.get_or_insert_with(now);
            }
        }
    }

    async fn grant(self, order: String, url: String, to: String) {
        self.call(&url, format!("grant of {order}"), &Grant { to }).await;
    }
}

fn key(headers: &HeaderMap) -> String {
    headers.get("idempotency-key").and_then(|key| key.to_str().ok()).unwrap_or_default().to_owned()
}

async fn app(
    State(fakes): State<Fakes>,
    Path(what): Path<String>,
    headers: HeaderMap,
    Json(notice): Json<Notice>,
) -> StatusCode {
    let Notice { of, by, callback } = notice;
    // Somebody else's service takes a moment, in which the host may die.
    sleep(Duration::from_millis(fastrand::u64(2..12))).await;
    match what.as_str() {
        "broker" | "regions" => {
            if fakes.known.lock().expect("nobody panics while writing it").insert(format!("{what} {of}")) {
                match what.as_str() {
                    "broker" => tokio::spawn(fakes.open(callback)),
                    _ => tokio::spawn(fakes.place_all(of, callback)),
                };
            }
        }
        "given_up" => match fakes.ledger().get_mut(&of) {
            Some(entry) => drop(entry.given_up.insert(key(&headers))),
            None => return StatusCode::NOT_FOUND,
        },
        "accepts" => {
            let (granting, is_new) = match fakes.ledger().get_mut(&of) {
                // The same request again is the same grant; another one is another grant, and that is one too many.
                Some(entry) => (entry.granting, entry.granted.insert(key(&headers), by.clone()).is_none()),
                None => return StatusCode::NOT_FOUND,
            };
            if !is_new {
                return StatusCode::OK;
            }
            let grant = |after: Duration| {
                let (fakes, of, callback, by) = (fakes.clone(), of.clone(), callback.clone(), by.clone());
                tokio::spawn(async move {
                    sleep(after).await;
                    fakes.grant(of, callback, by).await;
                })
            };
            match granting {
                Granting::AtOnce => drop(grant(Duration::from_millis(5))),
                Granting::Early => {
                    // Unless the host dies meanwhile, the answer to this request comes after the grant.
                    let _ = tokio::time::timeout(Duration::from_millis(300), grant(Duration::ZERO)).await;
                }
                Granting::Twice => {
                    grant(Duration::from_millis(5));
                    grant(Duration::from_millis(15));
                }
                Granting::Slow => drop(grant(fakes.limit / 2)),
                Granting::Unsure => {
                    grant(Duration::from_millis(50));
                    return StatusCode::INTERNAL_SERVER_ERROR;
                }
            }
        }
        _ => return StatusCode::NOT_FOUND,
    }
    StatusCode::OK
}

async fn partner(
    State(fakes): State<Fakes>,
    Path(what): Path<String>,
    headers: HeaderMap,
    Json(notice): Json<Notice>,
) -> StatusCode {
    let Notice { of, callback, .. } = notice;
    let (manner, is_first) = match fakes.ledger().get_mut(&of) {
        Some(entry) if what == "thanks" => {
            entry.thanks.insert(key(&headers));
            return StatusCode::OK;
        }
        Some(entry) => {
            entry.urls.insert(callback.clone());
            (entry.manner, entry.asked.replace(entry.asked.unwrap_or_else(now)).is_none())
        }
        None => return StatusCode::NOT_FOUND,
    };
    if is_first {
        let answer = |after: Duration| {
            let (fakes, of, callback) = (fakes.clone(), of.clone(), callback.clone());
            tokio::spawn(async move {
                sleep(after).await;
                fakes.answer(of, callback).await;
            })
        };
        let part = |percent: std::ops::Range<u32>| fakes.limit * fastrand::u32(percent) / 100;
        match manner {
            Manner::InTime => drop(answer(part(5..80))),
            Manner::Early => {
                let _ = tokio::time::timeout(Duration::from_millis(300), answer(Duration::ZERO)).await;
            }
            Manner::Twice => {
                let first = part(5..60);
                answer(first);
                answer(first + part(1..20));
            }
            Manner::Late => drop(answer(part(110..150))),
            Manner::Never => {}
        }
    }
    sleep(Duration::from_millis(fastrand::u64(2..12))).await;
    StatusCode::OK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_plans_and_all_manners_occur() {
        let manners = |seed| plans(50, seed).into_values().map(|entry| entry.manner).collect::<Vec<_>>();
        assert_eq!(manners(7), manners(7));
        assert_ne!(manners(7), manners(8));
        assert_eq!(plans(5, 7).into_values().map(|entry| entry.manner).collect::<BTreeSet<_>>().len(), 5);
    }
}
