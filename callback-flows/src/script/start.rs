//! The input of a script's flow: as it is asked for, and as it is stored, with all the source that the flow will ever run.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::library::{Compiled, ScriptError};
use crate::flows::{FlowsError, Refused};

/// The format that is written.
pub(super) const FORMAT: u32 = 1;
/// The version of Rhai that scripts run on.
pub(super) const RHAI: &str = "1.27.0";

/// The input with which a script is started: its name, and its arguments, each a variable in it.
///
/// ```
/// # use callback_flows::script::Script;
/// # let order = serde_json::json!({"customer": "cus_17"});
/// let input = Script::named("checkout").arg("order", &order);
/// # let _ = input;
/// ```
///
/// As JSON, such as over HTTP, it is `{"script": "checkout", "args": {"order": ..}}`.
#[derive(Debug, Clone)]
#[must_use = "it is an input for `Flows::start`"]
pub struct Script {
    name: String,
    args: Map<String, Value>,
    invalid: Option<String>,
}

impl Script {
    /// The script of this name, without arguments.
    pub fn named(name: impl Into<String>) -> Script {
        Script { name: name.into(), args: Map::new(), invalid: None }
    }

    /// Adds an argument. One that cannot be JSON is an error when the script is started.
    pub fn arg(mut self, name: impl Into<String>, value: &(impl Serialize + ?Sized)) -> Script {
        let name = name.into();
        match serde_json::to_value(value) {
            Ok(value) => drop(self.args.insert(name, value)),
            Err(error) => {
                self.invalid.get_or_insert(format!("the argument {name:?} cannot be JSON: {error}"));
            }
        }
        self
    }
}

impl Serialize for Script {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Some(invalid) = &self.invalid {
            return Err(S::Error::custom(invalid));
        }
        AskedFor { script: self.name.clone(), args: self.args.clone() }.serialize(serializer)
    }
}

/// An input as it is asked for. It has no place for source.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedFor {
    script: String,
    #[serde(default)]
    args: Map<String, Value>,
}

/// An input as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Row {
    /// 0 where nobody has added the sources: a flow that was not begun by [`Flows::start`](crate::Flows::start).
    #[serde(default)]
    pub(super) format: u32,
    pub(super) script: Box<str>,
    #[serde(default)]
    pub(super) args: Map<String, Value>,
    #[serde(default)]
    pub(super) sources: BTreeMap<Box<str>, Box<str>>,
    #[serde(default)]
    pub(super) hash: Box<str>,
    #[serde(default)]
    pub(super) rhai: Box<str>,
}

impl Row {
    pub(super) fn new(script: &str, args: Map<String, Value>, set: &Compiled) -> Row {
        let sources = set.sources().map(|(name, text)| (name.into(), text.into())).collect();
        Row { format: FORMAT, script: script.into(), args, sources, hash: (&*set.hash).into(), rhai: RHAI.into() }
    }
}

/// Checks an input, and adds all the source that the flow will run.
pub(super) fn prepare(
    flow: &str,
    input: &[u8],
    set_of: impl FnOnce(&str) -> Result<Arc<Compiled>, ScriptError>,
) -> Result<Bytes, FlowsError> {
    let as_input = |source| FlowsError::Input { flow: flow.into(), source };
    let AskedFor { script, args } = serde_json::from_slice(input).map_err(as_input)?;
    if let Some(name) = args.keys().find(|name| !is_variable(name)) {
        return Err(FlowsError::Refused(Refused::new(format!("args.{name}"), "it cannot be the name of a variable")));
    }
    let set = set_of(&script).map_err(|error| FlowsError::Refused(Refused::new(error.place(), error.reason())))?;
    serde_json::to_vec(&Row::new(&script, args, &set)).map(Bytes::from).map_err(as_input)
}

/// Tells whether two stored inputs were asked for alike, whatever the scripts were by then.
pub(super) fn is_same(one: &[u8], other: &[u8]) -> bool {
    let asked_for = |row: &[u8]| serde_json::from_slice::<Row>(row).map(|row| (row.script, row.args)).ok();
    asked_for(one).is_some_and(|one| asked_for(other) == Some(one))
}

fn is_variable(name: &str) -> bool {
    let is_first = |first: u8| first.is_ascii_alphabetic() || first == b'_';
    name.bytes().next().is_some_and(is_first) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_rhai_that_is_stored_is_the_one_that_is_built_in() {
        let manifest = include_str!("../../../Cargo.toml");
        assert!(manifest.contains(&format!("rhai = {{ version = \"={RHAI}\"")), "the workspace pins another version");
    }

    #[test]
    fn an_input_has_no_place_for_source() {
        let input = br#"{"script":"a","args":{},"sources":{"a":"canary()"}}"#;
        let refused = prepare("script", input, |_| unreachable!("it is refused before")).unwrap_err();
        assert!(matches!(refused, FlowsError::Input { .. }), "{refused}");
    }
}
