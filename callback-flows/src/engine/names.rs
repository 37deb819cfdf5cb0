//! The names of operations: how a replay finds them.
//!
//! `scope/kind:name[key]#ordinal`, of at most 512 bytes: no two operations of a flow have the same, and a text that a name is made
//! of cannot end it.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::state::Named;
use crate::by_name::ByName;
use crate::hash::short_hash;

/// The longest name of an operation, in bytes. A longer one is cut, and its hash put in the place of the rest.
const MAX_KEY_BYTES: usize = 512;

/// The kinds of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Step,
    Callback,
    Timer,
    Patch,
    Undo,
    Signal,
    Emit,
    Child,
    /// The wait for posts to children to have gone out.
    Posts,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Step => "step",
            Kind::Callback => "callback",
            Kind::Timer => "timer",
            Kind::Patch => "patch",
            Kind::Undo => "undo",
            Kind::Signal => "signal",
            Kind::Emit => "emit",
            Kind::Child => "child",
            Kind::Posts => "posts",
        }
    }

    /// Tells whether two of one name would be told apart only by which was first.
    pub(super) fn is_exclusive(self) -> bool {
        matches!(self, Kind::Step | Kind::Callback | Kind::Signal | Kind::Child)
    }

    /// Tells whether messages from outside are for it.
    pub(super) fn takes_messages(self) -> bool {
        matches!(self, Kind::Callback | Kind::Signal)
    }
}

/// The name of an operation without its ordinal: no two of different parts are the same.
pub(super) fn base_of(scope: &str, kind: Kind, name: &str, key: Option<&str>) -> String {
    let mut base = String::with_capacity(scope.len() + name.len() + key.map_or(0, str::len) + 24);
    if !scope.is_empty() {
        base.push_str(scope);
        base.push('/');
    }
    base.push_str(kind.name());
    base.push(':');
    escape(&mut base, name);
    if let Some(key) = key {
        base.push('[');
        escape(&mut base, key);
        base.push(']');
    }
    shortened(base, MAX_KEY_BYTES - "#4294967295".len())
}

/// The name of an operation outside of all branches, without key and ordinal.
#[cfg(feature = "testing")]
pub(crate) fn name_of(kind: Kind, name: &str) -> String {
    base_of("", kind, name, None)
}

/// The scope of a branch within another.
pub(crate) fn scope_within(scope: &str, name: &str) -> Arc<str> {
    let mut within = scope.to_owned();
    if !within.is_empty() {
        within.push('/');
    }
    escape(&mut within, name);
    shortened(within, MAX_KEY_BYTES / 2).into()
}

fn escape(into: &mut String, name: &str) {
    for char in name.chars() {
        match char {
            // The last one is what a name and the ID of a call are told apart by.
            '/' | ':' | '[' | ']' | '#' | '%' | '\0' => {
                let _ = write!(into, "%{:02x}", u32::from(char));
            }
            char => into.push(char),
        }
    }
}

/// The text, or its beginning and a hash of all of it.
fn shortened(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        let hash = short_hash(text.as_bytes());
        let mut end = limit - 33;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('~');
        text += &hash;
    }
    text
}

pub(super) fn is_patch(key: &str) -> bool {
    let local = key.rsplit('/').next().unwrap_or(key);
    local.starts_with("patch:")
}

/// Tells whether the code has begun an operation with this key, held or not.
pub(super) fn has_begun(named: &ByName<Named>, key: &str) -> bool {
    let Some((base, ordinal)) = key.rsplit_once('#') else { return false };
    let Ok(ordinal) = ordinal.parse::<u32>() else { return false };
    named.get(base).is_some_and(|named| ordinal < named.next)
}

/// The key of the signal of this name, within the branches named before it: `branch/name`. It has the same one each time it is begun.
pub(crate) fn signal_key(name: &str) -> Arc<str> {
    let (scope, name) = match name.rsplit_once('/') {
        Some((branches, name)) => {
            (branches.split('/').fold(Arc::from(""), |scope: Arc<str>, branch| scope_within(&scope, branch)), name)
        }
        None => ("".into(), name),
    };
    format!("{}#0", base_of(&scope, Kind::Signal, name, None)).into()
}

/// Tells whether an operation of this key is the callback of this name, in whatever branch.
pub(crate) fn is_callback_named(key: &str, name: &str) -> bool {
    let local = key.rsplit('/').next().unwrap_or(key);
    let mut base = format!("{}:", Kind::Callback.name());
    escape(&mut base, name);
    local.rsplit_once('#').is_some_and(|(local, _)| local == base)
}

/// Names a timer by its duration.
pub(crate) fn timer_name(duration: Duration) -> String {
    format!("{duration:?}")
}
