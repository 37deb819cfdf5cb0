//! The schema that the tables live in: its name, its making, and the text of every query on it.
//!
//! A schema is made by the same [steps](crate::steps) that bring an old one up to date. That is safe when many hosts start at once, of
//! several releases: whoever holds the advisory lock looks again before making anything, and everything is made in one transaction.

use std::fmt;

use stable_interfaces::StoreError;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::steps::{RELEASE, Record, Refused};

/// The texts of each step. One that has been released never changes: hosts of an older release use what it made.
///
/// A step must not hold up hosts that are at work: a column has a constant default, an index is on a table that is new, and a function or
/// type that differs has a name of its own.
const STEPS: [&[&str]; 3] = [
    &[
        include_str!("sql/step_1/tables.sql"),
        include_str!("sql/step_1/write.sql"),
        include_str!("sql/step_1/transaction.sql"),
        include_str!("sql/step_1/claim.sql"),
        include_str!("sql/step_1/view.sql"),
    ],
    &[include_str!("sql/step_2/record.sql"), include_str!("sql/step_2/claim.sql")],
    &[include_str!("sql/step_3/members.sql"), include_str!("sql/step_3/claim.sql")],
];

/// The last step that this code knows.
#[allow(clippy::cast_possible_truncation, reason = "there are few")]
const STEP: u32 = STEPS.len() as u32;

/// The schema's name unless another is chosen.
pub(super) const DEFAULT_SCHEMA: &str = "stable_interfaces";

/// A checked schema name.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Schema(String);

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Every query that a connection prepares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Query {
    Claim,
    Renew,
    Cordon,
    Members,
    Write,
    WriteLast,
    OpenLane,
    AskLane,
    Post,
    LoadAlarms,
    LoadInbox,
    LoadInboxKeys,
    LoadDead,
    ReadAlarms,
    ReadAlarmsTo,
    ReadStorage,
    ReadStorageTo,
}

impl Query {
    pub(super) const COUNT: usize = Query::ReadStorageTo as usize + 1;
}

impl Schema {
    /// Checks the name: `^[a-z_][a-z0-9_]{0,30}$`, so that it needs no escaping anywhere and leaves room for a suffix.
    pub(super) fn new(name: &str) -> Result<Schema, StoreError> {
        let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
        let rest = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        // Postgres keeps names that begin so to itself.
        if first && rest && name.len() <= 31 && !name.starts_with("pg_") {
            return Ok(Schema(name.to_owned()));
        }
        let text = format!("{name:?} cannot be a schema name: use [a-z_][a-z0-9_]{{0,30}}, not beginning with pg_");
        Err(StoreError::Open(text, None))
    }

    /// The name as SQL writes it; it may be a keyword.
    pub(super) fn quoted(&self) -> String {
        format!("\"{}\"", self.0)
    }

    /// The channel on which inbox rows are announced. Channels belong to the database, so it carries the schema's name.
    pub(super) fn channel(&self) -> String {
        format!("{}_inbox", self.0)
    }

    /// Fills the schema's name into a text.
    pub(super) fn fill(&self, sql: &str) -> String {
        sql.replace("{s}", &self.quoted()).replace("{channel}", &self.channel())
    }

    pub(super) fn text(&self, query: Query) -> String {
        let sql = match query {
            // The members are those after the first function is done: the second takes its answer.
            Query::Claim => {
                "SELECT c.*, m.* FROM {s}.claim_3($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) c, \
                 {s}.members(c.server_now) m"
            }
            Query::Renew => {
                // Whoever has said that it leaves is leaving to its end.
                "SELECT r.*, m.* FROM {s}.renew_2($1, $2, $3, $4, $5 OR EXISTS \
                 (SELECT FROM {s}.host h WHERE h.incarnation = $1 AND h.is_leaving), $6, $7) r, {s}.members(r.server_now) m"
            }
            Query::Cordon => include_str!("sql/cordon.sql"),
            Query::Members => "SELECT * FROM {s}.members({s}.now_ms())",
            Query::Write => "SELECT * FROM {s}.write($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
            Query::WriteLast => {
                "SELECT * FROM {s}.write_last($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"
            }
            Query::OpenLane => include_str!("sql/open_lane.sql"),
            Query::AskLane => {
                "UPDATE {s}.fence f SET seq = f.seq WHERE f.incarnation = $1 AND f.lane = $2 RETURNING f.seq"
            }
            Query::Post => include_str!("sql/post.sql"),
            Query::LoadAlarms => include_str!("sql/load_alarms.sql"),
            Query::LoadInbox => include_str!("sql/load_inbox.sql"),
            Query::LoadInboxKeys => include_str!("sql/load_inbox_keys.sql"),
            Query::LoadDead => include_str!("sql/load_dead.sql"),
            Query::ReadAlarms | Query::ReadAlarmsTo => include_str!("sql/read_alarms.sql"),
            Query::ReadStorage | Query::ReadStorageTo => include_str!("sql/read_storage.sql"),
        };
        let end = match query {
            Query::ReadAlarmsTo => "a.id < $7",
            Query::ReadStorageTo => "v.key < $7",
            _ => "true",
        };
        self.fill(sql).replace("{end}", end)
    }

    /// The text that gives up shards, each under an epoch or under whichever it is owned.
    pub(super) fn release(&self, incarnation: i64, shards: &[i32], epochs: &[Option<i64>]) -> String {
        let list = |numbers: Vec<String>| numbers.join(",");
        let shards = list(shards.iter().map(ToString::to_string).collect());
        let epochs = list(epochs.iter().map(|epoch| epoch.map_or("NULL".to_owned(), |it| it.to_string())).collect());
        let sql = self.fill(include_str!("sql/release.sql"));
        sql.replace("{incarnation}", &incarnation.to_string()).replace("{shards}", &shards).replace("{epochs}", &epochs)
    }

    /// Makes the schema in the database, unless it `must_exist`, or brings it up to date.
    pub(super) async fn make(&self, client: &Client, must_exist: bool) -> Result<(), MakeError> {
        match self.record(client).await?.transpose()? {
            Some(record) if record.missing(STEP)?.is_empty() => return Ok(()),
            None if must_exist => return Err(MakeError::Missing(self.0.clone())),
            _ => {}
        }
        client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
        let made = self.make_locked(client).await;
        let end = if made.is_ok() { "COMMIT" } else { "ROLLBACK" };
        client.batch_execute(end).await?;
        made
    }

    async fn make_locked(&self, client: &Client) -> Result<(), MakeError> {
        let lock = format!("SELECT pg_advisory_xact_lock(hashtextextended('stable-interfaces schema {}', 0))", self.0);
        client.batch_execute(&lock).await?;
        let missing = match self.record(client).await? {
            // Somebody else may have made it while this waited.
            Some(record) => record?.missing(STEP)?,
            None => {
                let sql = "SELECT EXISTS(SELECT FROM pg_namespace WHERE nspname = $1)";
                let exists: bool = client.query_one_scalar(sql, &[&self.0]).await?;
                // IF NOT EXISTS would ask for the right to create one even where there is one.
                if !exists {
                    client.batch_execute(&format!("CREATE SCHEMA {}", self.quoted())).await?;
                }
                1..=STEP
            }
        };
        let from = *missing.start();
        for step in missing {
            self.make_step(client, step).await.map_err(|error| match error.code() {
                Some(&SqlState::INSUFFICIENT_PRIVILEGE) if from > 1 => MakeError::NotOurs(self.0.clone(), error),
                _ => MakeError::Sql(error),
            })?;
            tracing::info!(schema = self.0, step, "a step of the schema's layout has been made");
        }
        Ok(())
    }

    async fn make_step(&self, client: &Client, step: u32) -> Result<(), tokio_postgres::Error> {
        for sql in STEPS[step as usize - 1] {
            client.batch_execute(&self.fill(sql)).await?;
        }
        // Step 1 wrote its own number, and had no place for more.
        if step > 1 {
            let Record { step, needs, .. } = Record::of(step);
            let sql =
                format!("UPDATE {{s}}.schema_version SET version = {needs}, step = {step}, release = '{RELEASE}'");
            client.batch_execute(&self.fill(&sql)).await?;
        }
        Ok(())
    }

    /// The record of the steps that have been made, if there are tables.
    pub(super) async fn record(
        &self,
        client: &Client,
    ) -> Result<Option<Result<Record, Refused>>, tokio_postgres::Error> {
        // Not to_regclass: that may answer from what this session remembers of the time before it waited for the lock.
        let sql = "SELECT EXISTS(SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                   WHERE n.nspname = $1 AND c.relname = 'schema_version')";
        let exists: bool = client.query_one_scalar(sql, &[&self.0]).await?;
        if !exists {
            return Ok(None);
        }
        // As an object, because a column that is not there yet can be asked for there.
        let sql = "SELECT v->>'step', v->>'version', v->>'release' FROM (SELECT to_jsonb(s) AS v FROM {s}.schema_version s) s";
        let row = client.query_opt(&self.fill(sql), &[]).await?;
        let text = |column| row.as_ref().and_then(|row| row.get::<_, Option<&str>>(column));
        // Without its row it is damaged, and not the first layout.
        Ok(Some(Record::read(text(0), Some(text(1).unwrap_or_default()), text(2))))
    }
}

/// The reason why [`Schema::make`] failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum MakeError {
    #[error(transparent)]
    Sql(#[from] tokio_postgres::Error),
    /// The program may not use the layout that is there.
    #[error("the schema cannot be used: {0}")]
    Refused(#[from] Refused),
    /// An old schema belongs to another user.
    #[error(
        "the schema {0} has to be brought up to date (step {STEP} of its layout), which this user has no right to; connect once, with this \
         release, as the user that owns the schema"
    )]
    NotOurs(String, #[source] tokio_postgres::Error),
    /// There is no store, and none is to be made.
    #[error(
        "there is no store in the schema {0} of this database, and must_exist(true) was asked for; name the schema and database that have it, or \
         connect once without"
    )]
    Missing(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_name_is_lower_case_and_short() {
        for good in ["stable_interfaces", "_", "a1", &"x".repeat(31)] {
            assert!(Schema::new(good).is_ok(), "{good:?}");
        }
        for bad in ["", "1a", "A", "a-b", "a\"b", "a;b", "ä", "pg_toast", &"x".repeat(32)] {
            assert!(Schema::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_step_takes_nothing_away_and_changes_nothing_that_older_hosts_use() {
        for sql in STEPS.iter().skip(1).copied().flatten() {
            let words = sql.to_uppercase();
            for taking in ["DROP ", "RENAME ", "OR REPLACE", "ALTER COLUMN", "DELETE FROM {S}.SCHEMA", "TRUNCATE "] {
                assert!(!words.contains(taking), "a step says {taking}: {sql}");
            }
        }
    }

    #[test]
    fn every_query_is_filled_in() {
        let schema = Schema::new("order").expect("a good name");
        let text = schema.text(Query::ReadStorageTo);
        assert!(text.contains("FROM \"order\".storage v") && text.contains("v.key < $7"), "{text}");
        assert!(schema.text(Query::Post).contains("pg_notify('order_inbox'"));
        assert!(!schema.text(Query::ReadAlarms).contains('{'));
    }
}
