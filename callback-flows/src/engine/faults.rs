//! The words for what blocks a flow.

use std::any::Any;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::names::{Kind, is_patch};
use super::ticket::MAX_OPEN;
use crate::blocked::{Blocked, BlockedKind};
use crate::journal::{Begun, Detail};

pub(super) fn two_at_once(kind: Kind, name: &str) -> Blocked {
    let key = if kind == Kind::Step { format!("`flow.step_for(\"{name}\", &item.id)`, or ") } else { String::new() };
    let advice = match kind {
        Kind::Step => "give each a key, ",
        Kind::Child => "let go of the first one of this ID before the second, or open ",
        _ => "give each a name of its own, or ",
    };
    let message = format!("two `{name}` at once: {advice}{key}a `branch`");
    Blocked::new(BlockedKind::TwoAtOnce, message)
}

pub(super) fn too_many_open() -> Blocked {
    let message = format!(
        "its code holds more than {MAX_OPEN} callbacks: drop those that nobody is to call any more, or give one out for many"
    );
    Blocked::new(BlockedKind::TooMany, message)
}

pub(super) fn out_of_place(operation: &str) -> Blocked {
    let message = format!(
        "`{operation}` was begun in a place from which a replay cannot begin it again: inside of a step, in a spawned task, or \
         because of something that is not durable"
    );
    Blocked::new(BlockedKind::NotDurable, message)
}

pub(super) fn waited_for_elsewhere(operation: &str) -> Blocked {
    let message = format!(
        "`{operation}` is waited for outside of the flow's own code, where a replay cannot tell what came first: inside of a step, or \
         in a spawned task. Wait for it in the flow, by `join!`, `select!` or `FuturesUnordered`"
    );
    Blocked::new(BlockedKind::NotDurable, message)
}

pub(super) fn beside_the_journal(what: &str) -> Blocked {
    let message = format!(
        "its code has {what} without anything in its journal having happened: it was told by something that is not durable, \
         such as a lock or a channel that a step uses too"
    );
    Blocked::new(BlockedKind::NotDurable, message)
}

/// Compares what the code began because of an entry with what it began the first time, in any order.
pub(super) fn compare(seq: u64, expected: &[Begun], begun: &[Begun]) -> Result<(), Blocked> {
    if expected == begun {
        return Ok(());
    }
    let sorted =
        |list: &[Begun]| -> BTreeSet<Begun> { list.iter().filter(|one| !is_patch(&one.key)).cloned().collect() };
    let (expected, begun) = (sorted(expected), sorted(begun));
    let missing: Vec<_> = expected.difference(&begun).collect();
    let extra: Vec<_> = begun.difference(&expected).collect();
    let is_known = |one: &&Begun| matches!(one.detail, Detail::Input(_));
    for one in &missing {
        let Some(other) = extra.iter().find(|other| other.key == one.key) else { continue };
        if is_known(one) && is_known(other) {
            let message = format!("after entry {seq} of its journal, `{}` has another input than it had then", one.key);
            return Err(Blocked::new(BlockedKind::Differs, message));
        }
    }
    // A hash of an input that came or went says nothing.
    let names = |list: &[&Begun], other: &[&Begun]| -> Vec<String> {
        let only_here = list.iter().filter(|one| !other.iter().any(|other| other.key == one.key));
        only_here.map(|one| format!("`{}`", one.key)).collect()
    };
    let (missing, extra) = (names(&missing, &extra), names(&extra, &missing));
    let message = match (missing.is_empty(), extra.is_empty()) {
        (true, true) => return Ok(()),
        (false, true) => {
            format!(
                "after entry {seq} of its journal, the code began {}, and does not begin it now",
                missing.join(", ")
            )
        }
        (true, false) => {
            format!("after entry {seq} of its journal, the code begins {}, and did not begin it then", extra.join(", "))
        }
        (false, false) => format!(
            "after entry {seq} of its journal, the code began {}, and begins {} now",
            missing.join(", "),
            extra.join(", ")
        ),
    };
    Err(Blocked::new(BlockedKind::Differs, message))
}

pub(super) fn foreign_wake() -> Blocked {
    let message = "its code waits for something that is not durable, which has happened now: tokio's own `sleep` or `timeout` \
                   (`flow.sleep` and `flow.timeout` are durable), a spawned task, a lock or a channel that it shares with \
                   others. What else there is to wait for belongs into a step";
    Blocked::new(BlockedKind::NotDurable, message.into())
}

pub(super) fn panicked(panic: Box<dyn Any + Send>) -> Blocked {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "with no text".into());
    drop_payload(panic);
    Blocked::new(BlockedKind::Panicked, format!("its code panicked: {text}"))
}

/// Drops the payload of a panic, which is the application's and may panic as well.
pub(super) fn drop_payload(panic: Box<dyn Any + Send>) {
    // The next one is not looked at any more: it may go on like this for ever.
    if let Err(next) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(next);
    }
}
