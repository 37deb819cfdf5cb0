//! A broker of deliveries, as two flows. The app says which regions open, and has orders in each of them; a partner is asked for
//! somebody who takes an order, within a limit; and if there is one, the app grants it.
//!
//! Everything that is waited for here may come while no process runs: early, late, twice, out of order, or never. Read it from top to
//! bottom: there is nothing more to it. `service.rs` has the doors through which calls come in.

use std::sync::Arc;
use std::time::Duration;

use callback_flows::{Flow, FlowResult};
use futures_util::{StreamExt, stream::SelectAll};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use stable_interfaces::Timestamp;

/// A region that opens, as the app tells of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Region {
    pub(crate) region: String,
}

/// An order, as the app places it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: String,
    pub(crate) region: String,
}

/// Somebody who takes an order, as the partner answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Taker {
    pub(crate) by: String,
}

/// The app's word that an order is somebody's.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Grant {
    pub(crate) to: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Granted { to: String },
    NoTaker,
}

/// The result of an order's flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    /// The time by which the partner had to answer.
    pub(crate) due: Timestamp,
}

/// All that the flows need of the world.
pub(crate) struct World {
    pub(crate) app: Remote,
    pub(crate) partner: Remote,
    /// The time in which the partner has to answer.
    pub(crate) limit: Duration,
}

/// Runs for as long as the business does: follows the regions that open, and begins a flow for each of their orders.
pub(crate) async fn broker(world: Arc<World>, flow: Flow, (): ()) -> FlowResult<()> {
    let app = &world.app;
    let mut regions = flow.callback::<Region>("regions");
    flow.step("introduce").run(|s| app.tell("broker", "-", "-", regions.url(), s.idempotency_key())).await?;
    let mut orders = SelectAll::new();
    loop {
        tokio::select! {
            opened = regions.next() => {
                let Ok(Region { region }) = opened else { continue }; // none of ours
                let placed = flow.branch(&region).callback::<Order>("orders");
                flow.step_for("register", &region)
                    .run(|s| app.tell("regions", &region, "-", placed.url(), s.idempotency_key()))
                    .await?;
                orders.push(placed);
            }
            Some(placed) = orders.next() => {
                let Ok(order) = placed else { continue };
                // A flow of its own, under the order's ID: the same order again is the same flow.
                drop(flow.spawn("order", &order.id, &order));
            }
        }
    }
}

/// The life of an order, since version 2: its partner is thanked for what is granted.
pub(crate) async fn order(world: Arc<World>, flow: Flow, order: Order) -> FlowResult<Ended> {
    let ended = order_1(world.clone(), flow.clone(), order.clone()).await?;
    if let Outcome::Granted { to } = &ended.outcome {
        let partner = &world.partner;
        flow.step("thank").run(|s| partner.tell("thanks", &order.id, to, String::new(), s.idempotency_key())).await?;
    }
    Ok(ended)
}

/// The life of an order in version 1, for as long as there are orders that began with it.
pub(crate) async fn order_1(world: Arc<World>, flow: Flow, order: Order) -> FlowResult<Ended> {
    let World { app, partner, limit } = &*world;
    let mut answer = flow.callback::<Taker>("answer");
    flow.step("offer").run(|s| partner.tell("offers", &order.id, "-", answer.url(), s.idempotency_key())).await?;
    let due = flow.now() + *limit;
    let Ok(taker) = flow.timeout(*limit, answer.next()).await else {
        flow.step("give up").run(|s| app.tell("given_up", &order.id, "-", String::new(), s.idempotency_key())).await?;
        return Ok(Ended { outcome: Outcome::NoTaker, due });
    };
    let by = taker?.by;
    let mut grant = flow.callback::<Grant>("grant");
    flow.step("accept").run(|s| app.tell("accepts", &order.id, &by, grant.url(), s.idempotency_key())).await?;
    let to = grant.next().await?.to;
    Ok(Ended { outcome: Outcome::Granted { to }, due })
}

/// A service of somebody else, over HTTP.
pub(crate) struct Remote {
    pub(crate) http: reqwest::Client,
    pub(crate) base: Url,
}

/// The body of each request to one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Notice {
    /// The order, or the region.
    pub(crate) of: String,
    /// The taker of the order or the region.
    pub(crate) by: String,
    /// The URL at which it is to answer.
    pub(crate) callback: String,
}

impl Remote {
    /// Tells it something. It knows by the key if it is told again, as it is after a crash or an error.
    async fn tell(&self, what: &str, of: &str, by: &str, callback: String, key: String) -> Result<(), reqwest::Error> {
        let notice = Notice { of: of.to_owned(), by: by.to_owned(), callback };
        let mut url = self.base.clone();
        url.set_path(&format!("{}{what}", url.path()));
        let request = self.http.post(url).header("idempotency-key", key).json(&notice);
        request.send().await?.error_for_status().map(drop)
    }
}
