//! Asking the hosts for something, and writing down what they said.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
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

/// What was asked for, until whoever learns of its outcome takes it. Messages are made anew for each host they are sent to.
pub(super) type Awaited = Arc<Mutex<Option<Pending>>>;

pub(super) fn tell(awaited: &Awaited, outcome: Outcome) {
    if let Some(pending) = awaited.lock().take() {
        pending.told(outcome);
    }
}

/// Asks the owner of an instance, and the host it names if it is not the owner. Gives the last answer, and who gave it.
pub(super) async fn ask<R, F>(
    client: &Client<App>,
    id: &str,
    operation: impl Fn(App) -> F,
) -> Option<(Answer<R>, Site<App>)>
where
    F: Future<Output = Answer<R>>,
{
    let is_astray = client.random().chance(0.1);
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

/// Whoever is told that a time was over has waited for that time.
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
    steps: impl Fn(App) -> Vec<Step>,
) -> Option<(Answer<Said>, Site<App>)> {
    ask(client, id, |app| {
        let (steps, address) = (steps(app.clone()), app.address(client, id));
        async move {
            let answer = app.request(&address, app.message(id, steps)).await;
            said_arrived(&answer);
            answer
        }
    })
    .await
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
    }
    let outcome = match answer {
        Ok(reply) if !was_done(reply) => Outcome::Not,
        answer => outcome(answer),
    };
    asked.told_by(outcome, site.life().number(), site.life().now());
    outcome == Outcome::Done
}
