//! The partner: a service of somebody else that is told of orders and calls back in time, late, twice or never.
//!
//! It keeps a ledger of all it heard, every call it made and what each got for an answer. The ledger lives in the parent
//! process, which nobody kills, so the verdict has a witness that does not depend on what the host remembers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use stable_interfaces::Timestamp;
use tokio::time::sleep;

use crate::doors::{Door, Doors};

/// The partner's treatment of one order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Manner {
    InTime,
    Twice,
    Late,
    Never,
}

/// The partner's part in one order, settled by the seed before it hears of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) manner: Manner,
    /// The times of its calls, counted from when it heard of the order.
    pub(crate) calls: Vec<Duration>,
}

/// A plan for each of `orders`: all four manners occur among any five, in an order drawn from `seed`.
pub(crate) fn plans(orders: usize, seed: u64, order_timeout: Duration) -> Vec<Plan> {
    use Manner::{InTime, Late, Never, Twice};
    let mut random = fastrand::Rng::with_seed(seed);
    let mut millis = |range| Duration::from_millis(random.u64(range));
    let mut plans: Vec<Plan> = [InTime, Late, Twice, Never, InTime]
        .into_iter()
        .cycle()
        .take(orders)
        .map(|manner| {
            let calls = match manner {
                InTime => vec![millis(100..1_700)],
                Twice => {
                    let first = millis(100..1_700);
                    vec![first, first + millis(0..400)]
                }
                Late => vec![order_timeout + millis(150..800)],
                Never => vec![],
            };
            Plan { manner, calls }
        })
        .collect();
    random.shuffle(&mut plans);
    plans
}

/// The end of one attempt to call the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Status(u16),
    /// No connection: it was never sent.
    Refused,
    /// The connection broke, or the time was over, before an answer: it may have been heard.
    Broken,
}

impl Answer {
    pub(crate) fn of(result: &Result<reqwest::Response, reqwest::Error>) -> Answer {
        match result {
            Ok(response) => Answer::Status(response.status().as_u16()),
            Err(error) if error.is_connect() => Answer::Refused,
            Err(_) => Answer::Broken,
        }
    }

    /// Tells whether it settles a call; every other answer asks to come again.
    pub(crate) fn is_final(self) -> bool {
        matches!(self, Answer::Status(status) if status < 500 && status != 408 && status != 429)
    }
}

/// All that is known, outside the host, of one order.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) plan: Plan,
    /// The time at which the host was first asked to place it.
    pub(crate) posted: Option<Timestamp>,
    /// The answer to each attempt to place it.
    pub(crate) placing: Vec<Answer>,
    /// The callback URLs the partner was given, one for each time it was told.
    pub(crate) told: Vec<String>,
    /// The answer to each attempt to call back, in the order in which they ended.
    pub(crate) answers: Vec<Answer>,
    /// The time of the first answer to a call that said that it is stored, for another host to take.
    pub(crate) stored: Option<Timestamp>,
}

impl Entry {
    pub(crate) fn new(plan: Plan) -> Entry {
        Entry { plan, posted: None, placing: vec![], told: vec![], answers: vec![], stored: None }
    }

    /// Tells whether a host has said that it is placed, or stored for another host to begin.
    pub(crate) fn is_acknowledged(&self) -> bool {
        self.placing.iter().any(|answer| matches!(answer, Answer::Status(200 | 202)))
    }

    /// Tells whether everything that was to happen outside the host has happened.
    fn is_settled(&self) -> bool {
        let calls = self.answers.iter().filter(|answer| answer.is_final()).count();
        self.is_acknowledged() && calls == self.plan.calls.len()
    }

    /// Tells whether the order is placed and certainly not decided yet.
    fn is_waiting(&self, now: Timestamp, order_timeout: Duration) -> bool {
        let due = self.posted.is_some_and(|posted| posted + order_timeout <= now);
        self.is_acknowledged() && !due && self.answers.iter().all(|answer| matches!(answer, Answer::Refused))
    }
}

/// The answers that came through a door whose host stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct AtStaying {
    pub(crate) requests: usize,
    pub(crate) refused: usize,
    pub(crate) cut_off: usize,
    /// Told to come again.
    pub(crate) put_off: usize,
}

impl AtStaying {
    fn count(&mut self, answer: Answer) {
        self.requests += 1;
        match answer {
            Answer::Refused => self.refused += 1,
            Answer::Broken => self.cut_off += 1,
            Answer::Status(status) => self.put_off += usize::from(status >= 500),
        }
    }
}

/// The knowledge of the world outside the host: each order's [`Entry`], and how many requests to the host are under way.
#[derive(Debug)]
pub(crate) struct Ledger {
    entries: Mutex<BTreeMap<String, Entry>>,
    in_flight: AtomicUsize,
    at_staying: Mutex<AtStaying>,
    order_timeout: Duration,
}

impl Ledger {
    pub(crate) fn new(entries: BTreeMap<String, Entry>, order_timeout: Duration) -> Ledger {
        Ledger {
            entries: Mutex::new(entries),
            in_flight: AtomicUsize::new(0),
            at_staying: Mutex::default(),
            order_timeout,
        }
    }

    /// The entries, locked; never across an await.
    pub(crate) fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().expect("nobody panics while writing the ledger")
    }

    /// Changes the entry of an order, if there is such an order.
    pub(crate) fn note<T>(&self, order: &str, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.entries().get_mut(order).map(change)
    }

    /// Counts the orders that are placed and certainly not decided yet.
    pub(crate) fn waiting(&self) -> usize {
        let now = now();
        self.entries().values().filter(|entry| entry.is_waiting(now, self.order_timeout)).count()
    }

    /// Counts the orders that have been placed.
    pub(crate) fn placed(&self) -> usize {
        self.entries().values().filter(|entry| entry.is_acknowledged()).count()
    }

    /// Tells whether every order is placed and every callback has a final answer.
    pub(crate) fn is_settled(&self) -> bool {
        self.entries().values().all(Entry::is_settled)
    }

    /// The number of requests to the host that are under way.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// Sends a request through a door, counted as under way meanwhile.
    pub(crate) async fn send(
        &self,
        door: &Door,
        request: reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, reqwest::Error> {
        self.in_flight.fetch_add(1, Relaxed);
        let answer = request.send().await;
        self.in_flight.fetch_sub(1, Relaxed);
        if door.stays {
            self.at_staying.lock().expect("nobody panics while counting").count(Answer::of(&answer));
        }
        answer
    }

    /// The answers so far that came through a door whose host stays.
    pub(crate) fn at_staying(&self) -> AtStaying {
        *self.at_staying.lock().expect("nobody panics while counting")
    }
}

/// The wall clock, which parent and host share.
pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}

/// The notice of an order to the partner.
#[derive(Debug, Deserialize)]
struct Notice {
    order: String,
    callback: String,
}

/// All that the partner needs to call back.
#[derive(Debug, Clone)]
pub(crate) struct Partner {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) http: reqwest::Client,
    pub(crate) doors: Doors,
}

impl Partner {
    /// The partner's own service: `POST /orders` tells it of an order.
    pub(crate) fn routes(self) -> Router {
        Router::new().route("/orders", post(hear)).with_state(self)
    }
}

async fn hear(State(partner): State<Partner>, Json(notice): Json<Notice>) -> StatusCode {
    let Notice { order, callback } = notice;
    let heard = partner.ledger.note(&order, |entry| {
        entry.told.push(callback.clone());
        (entry.told.len() == 1).then(|| entry.plan.calls.clone())
    });
    let Some(first_time) = heard else { return StatusCode::NOT_FOUND };
    for delay in first_time.unwrap_or_default() {
        tokio::spawn(call_back(partner.clone(), order.clone(), callback.clone(), delay));
    }
    // A real partner takes a moment, in which the host may die.
    sleep(Duration::from_millis(fastrand::u64(2..12))).await;
    StatusCode::ACCEPTED
}

/// Calls back after `delay`, again and again and through any host, until there is a final answer.
async fn call_back(partner: Partner, order: String, callback: String, delay: Duration) {
    sleep(delay).await;
    loop {
        let (url, door) = partner.doors.through_any(&callback);
        let answer = Answer::of(&partner.ledger.send(&door, partner.http.post(url)).await);
        partner.ledger.note(&order, |entry| {
            if answer == Answer::Status(202) {
                entry.stored.get_or_insert_with(now);
            }
            entry.answers.push(answer);
        });
        if answer.is_final() {
            return;
        }
        sleep(Duration::from_millis(fastrand::u64(30..90))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(2);

    #[test]
    fn a_seed_repeats_its_plans_and_all_four_manners_occur() {
        assert_eq!(plans(200, 7, TIMEOUT), plans(200, 7, TIMEOUT));
        assert_ne!(plans(200, 7, TIMEOUT), plans(200, 8, TIMEOUT));
        let manners: std::collections::BTreeSet<Manner> = plans(5, 7, TIMEOUT).iter().map(|plan| plan.manner).collect();
        assert_eq!(manners.len(), 4);
    }

    #[test]
    fn a_late_call_is_late_and_the_first_of_any_other_is_not() {
        for Plan { manner, calls } in plans(500, 1, TIMEOUT) {
            let Some(first) = calls.first() else { continue };
            assert!(if manner == Manner::Late { *first > TIMEOUT } else { *first < TIMEOUT });
        }
    }

    #[test]
    fn an_order_waits_from_its_acknowledgement_until_an_answer_or_its_time() {
        let mut entry = Entry::new(Plan { manner: Manner::Twice, calls: vec![Duration::ZERO; 2] });
        let at = Timestamp::from_millis;
        entry.posted = Some(at(10));
        assert!(!entry.is_waiting(at(20), TIMEOUT));
        entry.placing.push(Answer::Status(200));
        assert!(entry.is_waiting(at(2_009), TIMEOUT) && !entry.is_waiting(at(2_010), TIMEOUT));
        entry.answers.push(Answer::Refused);
        assert!(entry.is_waiting(at(20), TIMEOUT));
        entry.answers.push(Answer::Broken);
        assert!(!entry.is_waiting(at(20), TIMEOUT), "it may have been heard");
    }

    #[test]
    fn an_order_is_settled_when_each_call_has_its_final_answer() {
        let mut entry = Entry::new(Plan { manner: Manner::Twice, calls: vec![Duration::ZERO; 2] });
        entry.placing.push(Answer::Status(200));
        entry.answers = vec![Answer::Status(200), Answer::Status(503), Answer::Broken];
        assert!(!entry.is_settled());
        entry.answers.push(Answer::Status(200));
        assert!(entry.is_settled());
    }
}
