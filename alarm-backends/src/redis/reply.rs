//! Answers of scripts: lists of texts.

use std::collections::BTreeSet;

use redis::Value;
use stable_interfaces::store::ShardId;

use super::failure::Failure;

/// The items of a list.
pub(super) fn list(value: Value) -> Result<Vec<Value>, Failure> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(Failure::unexpected(&other)),
    }
}

/// The bytes of an item; `None` for one that is not there.
pub(super) fn bytes(value: Value) -> Result<Option<Vec<u8>>, Failure> {
    match value {
        Value::BulkString(bytes) => Ok(Some(bytes)),
        Value::Nil | Value::Boolean(false) => Ok(None),
        other => Err(Failure::unexpected(&other)),
    }
}

/// The text of an item; `None` for one that is not there.
pub(super) fn optional_text(value: Value) -> Result<Option<String>, Failure> {
    let text =
        |bytes| String::from_utf8(bytes).map_err(|error| Failure::Unknown(format!("an answer is no text: {error}")));
    bytes(value)?.map(text).transpose()
}

/// A list of shards.
pub(super) fn shards(value: Value) -> Result<BTreeSet<ShardId>, Failure> {
    let (mut answer, mut shards) = (Texts::new(value)?, BTreeSet::new());
    while !answer.is_done() {
        shards.insert(ShardId(answer.number()?));
    }
    Ok(shards)
}

/// A list of texts, read from first to last.
#[derive(Debug)]
pub(super) struct Texts(std::vec::IntoIter<Value>);

impl Texts {
    pub(super) fn new(value: Value) -> Result<Texts, Failure> {
        list(value).map(|items| Texts(items.into_iter()))
    }

    pub(super) fn is_done(&self) -> bool {
        self.0.as_slice().is_empty()
    }

    pub(super) fn item(&mut self) -> Result<Value, Failure> {
        self.0.next().ok_or_else(|| Failure::Unknown("an answer is too short".to_owned()))
    }

    pub(super) fn text(&mut self) -> Result<String, Failure> {
        match self.item()? {
            Value::BulkString(bytes) => {
                String::from_utf8(bytes).map_err(|error| Failure::Unknown(format!("an answer is no text: {error}")))
            }
            other => Err(Failure::unexpected(&other)),
        }
    }

    pub(super) fn number<T: std::str::FromStr>(&mut self) -> Result<T, Failure> {
        let text = self.text()?;
        text.parse().map_err(|_| Failure::Unknown(format!("an answer has {text:?} for a number")))
    }

    /// An answer of `TIME`: seconds and microseconds.
    pub(super) fn time(&mut self) -> Result<stable_interfaces::Timestamp, Failure> {
        let (seconds, micros): (i64, i64) = (self.number()?, self.number()?);
        Ok(stable_interfaces::Timestamp::from_millis(seconds.saturating_mul(1_000).saturating_add(micros / 1_000)))
    }
}
