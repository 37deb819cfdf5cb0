//! Posting within a transaction of the application: the message exists if and only if that commits.
//!
//! For anyone who can write to the database, host or not. The shard is worked out by the server, from the shard count that the
//! fleet has recorded there, so a poster needs to know nothing about the fleet.

use serde::Serialize;
use stable_interfaces::store::{Addressed, HASH_VERSION};
use stable_interfaces::{ContextError, Directive, NewPost, Posted, StoreError, Timestamp};
use std::sync::Arc;
use tokio_postgres::GenericClient;
use tokio_postgres::types::Type;

use super::errors::judge;
use super::schema::{DEFAULT_SCHEMA, Schema};
use super::wire;

/// Posts to a fleet's inboxes in the caller's own transactions.
///
/// A message is handled if and only if the transaction commits, and from then on as if posted by
/// [`Interface::post`](stable_interfaces::Interface::post).
///
/// ```no_run
/// # async fn example(client: &mut tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::{Duration, SystemTime};
/// use alarm_backends::postgres::Poster;
/// use stable_interfaces::NewPost;
///
/// let poster = Poster::default();
/// let tx = client.transaction().await?;
/// tx.execute("INSERT INTO shipment (id, order_id) VALUES ($1, $2)", &[&"s-1", &"order-17"]).await?;
/// poster.post_in(&tx, "order", "order-17", NewPost::json(&"shipped")?.id("shipped-s-1")).await?;
/// poster.set_alarm_in(&tx, "order", "order-17", "overdue", SystemTime::now() + Duration::from_secs(86_400), &()).await?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Poster {
    sql: Arc<str>,
}

/// No host has ever claimed anything in this schema, or the fleet's version maps IDs to shards in another way.
#[derive(Debug, thiserror::Error)]
#[error("no host that maps IDs to shards as this version does has ever started on this schema")]
struct NoFleet;

impl Default for Poster {
    /// Posts for a store in the schema that stores are in by default.
    fn default() -> Poster {
        Poster::new(DEFAULT_SCHEMA).expect("the default can be a schema's name")
    }
}

impl Poster {
    /// Posts for a store in this [schema](super::PostgresStoreBuilder::schema).
    ///
    /// # Errors
    /// [`StoreError::Open`] if the name is not allowed.
    pub fn new(schema: &str) -> Result<Poster, StoreError> {
        Ok(Poster { sql: Schema::new(schema)?.fill(include_str!("sql/post_in.sql")).into() })
    }

    /// Posts a message to the inbox of the instance `id`, in the transaction `tx`.
    ///
    /// # Errors
    /// [`ContextError::InvalidId`] and [`ContextError::TooLarge`] as for any post; [`ContextError::Store`] with
    /// [`StoreError::Open`] if no host has ever started on the schema: after these the transaction can go on. Any other
    /// [`ContextError::Store`] is the database's, and the transaction has failed.
    pub async fn post_in(
        &self,
        tx: &impl GenericClient,
        interface: &str,
        id: &str,
        message: NewPost,
    ) -> Result<Posted, ContextError> {
        self.insert(tx, Addressed::post(interface, id, message)?).await
    }

    /// Sets an alarm of the instance `id` when the transaction `tx` commits, in place of any with that ID: by way of a
    /// [`Directive`] to its owner.
    ///
    /// # Errors
    /// As [`post_in`](Self::post_in).
    pub async fn set_alarm_in(
        &self,
        tx: &impl GenericClient,
        interface: &str,
        id: &str,
        alarm: &str,
        at: impl Into<Timestamp>,
        meta: &(impl Serialize + ?Sized),
    ) -> Result<Posted, ContextError> {
        self.direct_in(tx, interface, id, Directive::set_alarm(alarm, at, meta)?).await
    }

    /// Posts a directive to the instance `id`, in the transaction `tx`.
    ///
    /// # Errors
    /// As [`post_in`](Self::post_in).
    pub async fn direct_in(
        &self,
        tx: &impl GenericClient,
        interface: &str,
        id: &str,
        directive: Directive,
    ) -> Result<Posted, ContextError> {
        self.insert(tx, Addressed::directive(interface, id, directive)?).await
    }

    async fn insert(&self, tx: &impl GenericClient, message: Addressed) -> Result<Posted, ContextError> {
        let refused = |error| ContextError::Store(Arc::new(error));
        let headers = wire::headers(&message.headers).map_err(refused)?;
        let (hash, version) = (message.hash.to_string(), i64::from(HASH_VERSION));
        let (interface, instance, body) = (&*message.name.interface, &*message.name.instance, &*message.body);
        let row = tx
            .query_typed_one(
                &self.sql,
                &[
                    (&hash, Type::TEXT),
                    (&version, Type::INT8),
                    (&interface, Type::TEXT),
                    (&instance, Type::TEXT),
                    (&message.id.as_deref(), Type::TEXT),
                    (&headers, Type::BYTEA),
                    (&body, Type::BYTEA),
                ],
            )
            .await
            .map_err(|error| refused(judge(error).error))?;
        if row.get::<_, Option<i32>>("shard").is_none() {
            return Err(refused(StoreError::Open(NoFleet.to_string(), None)));
        }
        Ok(if row.get("inserted") { Posted::Inserted } else { Posted::Duplicate })
    }
}
