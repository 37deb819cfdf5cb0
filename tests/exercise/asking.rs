//! Asking the hosts for something, and writing down what they said.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use stable_interfaces::testing::{Client, Invariant, Outcome, Pending, Site};
use stable_interfaces::{ContextError, RequestError};

use super::cell::{Said, Step};
use super::{Answer, App, Failed};

/// An error that has come to whom it was meant for does nothing odd.
pub(super) fn arrived<R>(answer: &Answer<R>) {
    if let Err(RequestError::Handler(Failed::Odd(odd), _)) = answer {
        odd.arrived();
    }
}

/// As [`arrived`], with the reply.
pub(super) fn said_arrived(answer: &Answer<Said>) {
    arrived(answer);
    if let Ok(Said { odd: Some(odd), .. }) = answer {
        odd.arrived();
    }
}

pub(super) fn outcome<R>(answer: &Answer<R>) -> Outcome {
    Outcome::of(answer, |error| matches!(error, Failed::Context(ContextError::Unknown)))
}

pub(super) fn outcome_of_commit(result: &Result<(), ContextError>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(ContextError::Unknown) => Outcome::Unknown,
        Err(_) => Outcome::Not,
    }
}

/// The requests of which somebody else learns the outcome: a message on its way to whoever does carries this, and crosses from host to host.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Awaited(u64);

/// All that is awaited.
#[derive(Debug, Default)]
pub(super) struct Awaiting {
    next: AtomicU64,
    pending: Mutex<BTreeMap<u64, Pending>>,
}

impl Awaiting {
    /// Something that is not asked for yet.
    pub(super) fn prepare(&self) -> Awaited {
        Awaited(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// It is asked for, perhaps once more: what was asked for by an earlier try was refused for certain.
    pub(super) fn ask(&self, awaited: Awaited, pending: Pending) {
        let before = self.pending.lock().insert(awaited.0, pending);
        if let Some(before) = before {
            before.told(Outcome::Not);
        }
    }

    pub(super) fn tell(&self, awaited: Awaited, outcome: Outcome) {
        let pending = self.pending.lock().remove(&awaited.0);
        if let Some(pending) = pending {
            pending.told(outcome);
        }
    }
}

/// Asks some host for an instance, mostly the owner, and the host it names if it neither owns it nor has that one answer. Gives the last answer,
/// and who gave it.
pub(super) async fn ask<R, F>(
    client: &Client<App>,
    id: &str,
    operation: impl Fn(App) -> F,
) -> Option<(Answer<R>, Site<App>)>
where
    F: Future<Output = Answer<R>>,
{
    let is_astray = client.random().chance(0.35);
    let site = if is_astray { client.any().await } else { client.owner_of(id).await };
    let site = site?;
    let answer = in_time(client, operation(site.app().clone())).await;
    if let Err(RequestError::NotOwner { holder }) = &answer
        && let Some(other) = client.named(holder).await
    {
        let answer = in_time(client, operation(other.app().clone())).await;
        return Some((answer, other));
    }
    Some((answer, site))
}

/// Checks that whoever is told that a time was over has waited for that time.
async fn in_time<R>(client: &Client<App>, asking: impl Future<Output = Answer<R>>) -> Answer<R> {
    let sent = client.now();
    let answer = asking.await;
    arrived(&answer);
    let took = client.now().since(sent) + Duration::from_millis(2);
    if let Err(RequestError::TimedOut { after, waited_for }) = &answer
        && took < *after
    {
        let what = format!("told after {took:?} that the {after:?} of {waited_for} are over");
        client.history().violated(Invariant::Handled, what);
    }
    answer
}

/// Asks an instance to do these steps.
pub(super) async fn request(
    client: &Client<App>,
    id: &str,
    steps: impl Fn() -> Vec<Step>,
) -> Option<(Answer<Said>, Site<App>)> {
    ask(client, id, |app| {
        let (steps, address) = (steps(), app.address(client, id));
        async move {
            let answer = app.request(&address, app.message(id, steps)).await;
            said_arrived(&answer);
            fits_together(client, &answer);
            answer
        }
    })
    .await
}

/// Whatever an instance that answers had read is of one owner. One that has been replaced may answer from memory until it learns of that.
pub(super) fn fits_together(client: &Client<App>, answer: &Answer<Said>) {
    if let Ok(Said { torn: Some(torn), is_current: true, .. }) = answer {
        client.history().violated(Invariant::Read, torn.clone());
    }
}

/// Writes an answer down; whether it was done.
pub(super) fn settle<R>(
    client: &Client<App>,
    asked: Pending,
    answer: &Option<(Answer<R>, Site<App>)>,
    kind: &str,
) -> bool {
    settle_if(client, asked, answer, kind, |_| true)
}

/// As [`settle`], where the reply says whether anything was done.
pub(super) fn settle_if<R>(
    client: &Client<App>,
    asked: Pending,
    answer: &Option<(Answer<R>, Site<App>)>,
    kind: &str,
    was_done: impl FnOnce(&R) -> bool,
) -> bool {
    let Some((answer, site)) = answer else {
        asked.told(Outcome::Not);
        return false;
    };
    if answer.is_ok() {
        client.count(kind);
        if site.app().is_outside {
            client.count("request of a process that is no host");
        }
    }
    let outcome = match answer {
        Ok(reply) if !was_done(reply) => Outcome::Not,
        answer => outcome(answer),
    };
    asked.told_by(outcome, site.life().number(), site.life().now());
    outcome == Outcome::Done
}
