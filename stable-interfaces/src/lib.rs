//! Durable objects for Rust services: an instance per ID that lives in exactly one place, handles one message at a time,
//! wakes itself up, and loses nothing when a process dies.
//!
//! ```
//! use std::time::Duration;
//! use stable_interfaces::{Alarm, Context, ContextError, Handle, Host, MemoryStore, OnAlarm, StableInterface};
//!
//! struct Order { paid: bool }
//!
//! impl StableInterface for Order {
//!     const NAME: &'static str = "order";
//!     type Error = ContextError;
//!     async fn on_start(&mut self, cx: &mut Context) -> Result<(), ContextError> {
//!         self.paid = cx.get("paid").await?.unwrap_or(false);
//!         Ok(())
//!     }
//! }
//!
//! struct Place;
//! impl Handle<Place> for Order {
//!     type Reply = ();
//!     async fn handle(&mut self, cx: &mut Context, _: Place) -> Result<(), ContextError> {
//!         cx.put("paid", &false)?;
//!         cx.set_alarm("expire", cx.now() + Duration::from_secs(900), &())
//!     }
//! }
//!
//! struct Pay;
//! impl Handle<Pay> for Order {
//!     type Reply = bool;
//!     async fn handle(&mut self, cx: &mut Context, _: Pay) -> Result<bool, ContextError> {
//!         cx.cancel_alarm("expire")?;
//!         cx.put("paid", &true)?; // the payment and the cancelled alarm land together, then the reply is released
//!         self.paid = true; // memory changes last: an error before this leaves it as it is stored
//!         Ok(self.paid)
//!     }
//! }
//!
//! impl OnAlarm for Order {
//!     async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), ContextError> {
//!         cx.put("expired", &alarm.scheduled_at()) // a restart in between does not matter
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let mut host = Host::local(MemoryStore::new());
//! let orders = host.interface(|_id| Order { paid: false }).with_alarms().register()?;
//! let host = host.start().await?;
//! orders.request("order-17", Place).await?;
//! assert!(orders.request("order-17", Pay).await?);
//! host.drain(Duration::from_secs(1)).await;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | to | look at |
//! | --- | --- |
//! | say who owns what | [`Fleet`] |
//! | start, drain and look after a process | [`Host`] |
//! | write an entity | [`StableInterface`], [`Handle`], [`OnAlarm`], [`OnMessage`], [`OnConnect`] |
//! | change and read what it keeps | [`Context`] |
//! | talk to it | [`Interface`] |
//! | look after a fleet without being a host | [`FleetClient`], [`Directive`] |
//! | answer on any host | [`Transport`](transport::Transport), [`InterfaceBuilder::forward`] |
//! | keep data elsewhere | [`Store`] |
//! | test all that | `testing` (feature `testing`) |

mod alarm;
#[cfg(test)]
mod cases;
pub mod clock;
mod commit;
mod connection;
mod crowds;
mod dead;
mod directive;
mod error;
mod fleet;
mod fleet_client;
mod forward;
/// Functions that the fuzz targets try; there for the targets and the tests alone.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod host;
mod id;
mod inbox;
mod instance;
mod interface;
mod json;
pub mod metrics;
mod once;
mod quiet;
#[cfg(all(test, shuttle))]
mod schedules;
mod setting;
mod shards;
mod shared;
pub mod store;
mod sync;
mod tasks;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;

pub use alarm::{Alarm, FireId, RetryPolicy};
pub use clock::Timestamp;
pub use connection::{CONNECTION_BUFFER, Closed, ConnectionId};
pub use dead::{Dead, DeadKind};
pub use directive::Directive;
pub use error::{ContextError, Interim, JsonError, RequestError};
pub use fleet::{Fleet, FleetError, Location};
pub use fleet_client::FleetClient;
pub use host::{Drained, Ended, GuestBuilder, Health, Host, HostBuilder, InterfaceBuilder, RegisterError, StartError};
pub use id::InvalidId;
pub use inbox::{Message, NewPost};
pub use instance::chain::outside_of_handlers;
pub use instance::context::Context;
pub use instance::peer::{Connecting, Peer, SendError};
pub use instance::range::KeyRange;
pub use instance::task::{InstanceRef, Parked};
pub use instance::{Handle, OnAlarm, OnConnect, OnMessage, StableInterface};
pub use interface::{Connection, Interface};
pub use store::{MemoryStore, Posted, Store, StoreError};
