//! The end of a request that sends it on: it asks whoever is said to own the shard, and goes where that host says, until the request is
//! answered or may wait no longer.
//!
//! A request that has not begun anywhere is asked again: it was never sent, or the other host does not own the shard, takes nothing new, or has
//! not started yet. Everything else is the answer.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use super::table::Written;
use super::told::first_words;
use super::wire::{Answer, MAX_CHAIN, Request};
use crate::clock::within;
use crate::error::{ContextError, Outcome, RequestError};
use crate::instance::StableInterface;
use crate::instance::chain::{self, Chain};
use crate::instance::job::Work;
use crate::instance::kind::InterfaceCore;
use crate::quiet::{Quiet, guarded};
use crate::shared::Health;
use crate::store::ShardId;
use crate::store::client::backoff;
use crate::sync::Arc;
use crate::transport::{Addressee, MAX_MESSAGE_BYTES, Undelivered};

/// Pauses between two tries double up to the one after so many.
pub(crate) const LONGEST_PAUSE_AFTER: u32 = 5;

/// Shown in place of the host that owns an instance, where the fleet has none.
const NOBODY: &str = "a host that is up";

/// Work that is not this host's.
pub(crate) struct Away<W> {
    pub(crate) work: Quiet<W>,
    /// The host that owns its instance, as far as this one knows.
    pub(crate) holder: Arc<str>,
}

/// A request that is sent on.
pub(crate) type Sent<R, E> = Pin<Box<dyn Future<Output = Outcome<R, E>> + Send>>;

/// The end of the way.
enum Carried<R, E> {
    Answered(Outcome<R, E>),
    /// The shard has come to this host.
    Here,
}

/// The answer of one host.
pub(super) enum Said<R, E> {
    Done(Outcome<R, E>),
    /// Nothing has begun there.
    NotHere(RequestError<E>),
}

/// One request on its way.
struct Sending<'a> {
    id: &'a str,
    shard: ShardId,
    callers: Option<&'a Chain>,
    /// The names of those callers.
    names: Vec<String>,
    /// The context of the trace that it is part of.
    trace: Option<String>,
    /// The moment until which it may wait for its turn.
    turn_until: Duration,
    /// The moment until which a host that cannot be reached is tried.
    reach_until: Duration,
}

impl<I: StableInterface> InterfaceCore<I> {
    /// Has another host do the work.
    #[cold]
    pub(crate) fn send_on<W: Work<I>>(self: &Arc<Self>, id: &str, away: Away<W>) -> Sent<W::Reply, I::Error> {
        let Away { work, holder } = away;
        // Asked here, within the poll of the handler that asks, if one does.
        let callers = chain::origin(|| self.host.clock.elapsed(), self.options.handler_timeout).callers;
        let trace = self.host.options.traces.as_ref().and_then(|traces| traces.current());
        let (this, id): (Arc<Self>, Box<str>) = (self.clone(), id.into());
        if *holder == *self.host.name && !self.host.is_guest() {
            let until = callers.map(|callers| callers.turn_until());
            return Box::pin(async move {
                this.until_here(&id, until).await?;
                let work = work.into_inner().expect("the work is there until it is done");
                this.ask(&id, work).await.map_err(Box::new)
            });
        }
        Box::pin(async move {
            let message = work.as_ref().expect("the work is there until it is done");
            let Some(written) = message.write(&this) else { return Err(RequestError::NotOwner { holder }.into()) };
            let written = written?;
            let sending = Sending { trace, ..this.sending(&id, callers.as_deref(), &written)? };
            let _errand = this.host.begin_errand();
            match this.carry(&sending, &written, holder).await {
                Carried::Answered(outcome) => outcome,
                Carried::Here => {
                    let work = work.into_inner().expect("the work is there until it is done");
                    this.ask(&id, work).await.map_err(Box::new)
                }
            }
        })
    }

    /// Waits until a shard that is to come to this host has come, or is to be another host's after all.
    async fn until_here(&self, id: &str, until: Option<Duration>) -> Outcome<(), I::Error> {
        let host = &self.host;
        let invalid = |reason| ContextError::invalid("instance ID", id, reason);
        let shard = host.fleet.shard_of(id).map_err(invalid)?;
        let full = || RequestError::Overloaded("requests that wait for a shard".into());
        let _place = host.reach().and_then(|reach| reach.place_to_wait(id.len())).ok_or_else(full)?;
        let left = until.map_or(self.options.handler_timeout, |until| until.saturating_sub(host.clock.elapsed()));
        let came = within(&*host.clock, left.min(host.options.lease), host.wait_owned(shard)).await;
        came.map(drop).ok_or_else(|| RequestError::LeaseLost.into())
    }

    /// The part that all tries have in common, unless it is more than may be sent.
    fn sending<'a, R>(
        &self,
        id: &'a str,
        callers: Option<&'a Chain>,
        written: &Written<R, I::Error>,
    ) -> Outcome<Sending<'a>, I::Error> {
        let bytes = written.body.len();
        if bytes > MAX_MESSAGE_BYTES {
            let what = format!("the message {:?} has {bytes} bytes, more than {MAX_MESSAGE_BYTES}", written.message);
            return Err(RequestError::TooLarge(what).into());
        }
        let names = callers.map(Chain::shown).unwrap_or_default();
        if names.len() > MAX_CHAIN {
            return Err(RequestError::Overloaded("the links of the call chain".into()).into());
        }
        let invalid = |reason| ContextError::invalid("instance ID", id, reason);
        let shard = self.host.fleet.shard_of(id).map_err(invalid)?;
        let now = self.host.clock.elapsed();
        let turn_until = callers.map_or_else(|| now.saturating_add(self.options.handler_timeout), Chain::turn_until);
        let reach_timeout = self.options.reach_timeout.unwrap_or(self.host.options.lease);
        let reach_until = turn_until.min(now.saturating_add(reach_timeout));
        Ok(Sending { id, shard, callers, names, trace: None, turn_until, reach_until })
    }

    async fn carry<R>(
        &self,
        sending: &Sending<'_>,
        written: &Written<R, I::Error>,
        mut holder: Arc<str>,
    ) -> Carried<R, I::Error> {
        let host = &self.host;
        metrics::counter!(crate::metrics::FORWARDED, "interface" => I::NAME).increment(1);
        let mut tries = 0;
        // The next owner has requests wait that the one before sends there.
        let let_go = || host.shards.has_let_go(sending.shard).then(|| host.name.clone());
        let mut sent_by = let_go();
        loop {
            let error = match self.ask_host(sending, written, &holder, sent_by.as_deref()).await {
                Said::Done(outcome) => return Carried::Answered(outcome),
                Said::NotHere(error) => error,
            };
            host.look_at_members();
            let until = match error {
                RequestError::Unreachable { .. } => sending.reach_until,
                _ => sending.turn_until,
            };
            // Where that one says, if it is news.
            let named = match &error {
                RequestError::NotOwner { holder: named } if *named != holder && **named != *host.name => Some(named),
                _ => None,
            };
            let left = until.saturating_sub(host.clock.elapsed());
            if left.is_zero() || host.health() >= Health::Stopped {
                return Carried::Answered(Err(error.into()));
            }
            if tries > 0 || named.is_none() {
                metrics::counter!(crate::metrics::FORWARDED_AGAIN, "interface" => I::NAME).increment(1);
                let pause = backoff(&*host.random, tries.min(LONGEST_PAUSE_AFTER));
                host.clock.sleep(pause.min(left)).await;
            }
            tries += 1;
            if host.shards.intake(sending.shard).is_some() {
                return Carried::Here;
            }
            (holder, sent_by) = match named {
                Some(named) => (named.clone(), Some(holder)),
                None => (host.holder(sending.shard), let_go()),
            };
        }
    }

    /// Asks one host.
    async fn ask_host<R>(
        &self,
        sending: &Sending<'_>,
        written: &Written<R, I::Error>,
        holder: &Arc<str>,
        sent_by: Option<&str>,
    ) -> Said<R, I::Error> {
        if **holder == *self.host.name {
            // It is to be this host's, and is not yet; or nobody is known who could have it.
            let is_guest = self.host.is_guest();
            return Said::NotHere(if is_guest { unreachable_of(&NOBODY.into()) } else { RequestError::LeaseLost });
        }
        let now = self.host.clock.elapsed();
        let request = Request {
            interface: I::NAME,
            message: written.message,
            id: sending.id,
            key: written.key.as_ref().map(|key| &*key.key),
            since: written.key.as_ref().and_then(|key| key.first).map(|first| self.host.clock.now().since(first)),
            given: sending.turn_until.saturating_sub(now),
            waits: sending.callers.map(|callers| callers.waits_until().saturating_sub(now)),
            callers: sending.names.iter().map(String::as_str).collect(),
            sent_by,
            trace: sending.trace.as_deref(),
            body: &written.body,
        };
        let to = Addressee { host: holder.clone(), address: self.host.address_of(holder) };
        let Some(reach) = self.host.reach() else {
            return Said::NotHere(RequestError::NotOwner { holder: holder.clone() });
        };
        match reach.send(&to, request.encode()).await {
            Some(Ok(answer)) => read_answer(&answer, written, holder),
            Some(Err(error @ Undelivered::NotSent(_))) => {
                metrics::counter!(crate::metrics::UNREACHABLE).increment(1);
                tracing::debug!(interface = I::NAME, id = sending.id, to = %holder, %error, "another host cannot be reached");
                Said::NotHere(unreachable_of(holder))
            }
            Some(Err(error @ Undelivered::Unanswered(_))) => {
                tracing::warn!(interface = I::NAME, id = sending.id, to = %holder, %error, "the outcome of a request is not known");
                Said::Done(Err(RequestError::unknown(unreachable_of(holder)).into()))
            }
            None => {
                metrics::counter!(crate::metrics::OVERLOADED, "interface" => I::NAME).increment(1);
                Said::Done(Err(RequestError::Overloaded("requests to another host".into()).into()))
            }
        }
    }
}

pub(super) fn unreachable_of<E>(host: &Arc<str>) -> RequestError<E> {
    RequestError::Unreachable { host: host.clone() }
}

pub(super) fn read_answer<R, E>(answer: &[u8], written: &Written<R, E>, host: &str) -> Said<R, E> {
    let outcome = match Answer::decode(answer) {
        Ok(Answer::Reply(reply)) => match guarded(|| (written.read)(reply)) {
            Ok(Ok(reply)) => Ok(reply),
            // It was done there.
            Ok(Err(error)) => {
                let what = format!("the reply of {host} to {:?}", written.message);
                Err(RequestError::unknown(ContextError::not_a::<R>(what, error).into()))
            }
            Err(panic) => Err(RequestError::unknown(RequestError::Rejected(format!(
                "the reply of {host} to {:?} panicked when it was read: {panic}",
                written.message
            )))),
        },
        Ok(Answer::Handler { interim, error }) => {
            let read = guarded(|| (written.read_error)(error));
            let error = match read {
                Ok(Ok(error)) => RequestError::handler(error),
                read => {
                    let text = String::from_utf8_lossy(error);
                    let why = read
                        .map_or_else(|panic| panic, |read| read.err().map_or_else(String::new, |why| why.to_string()));
                    RequestError::Rejected(format!(
                        "the handler on {host} failed with an error that cannot be read here: {} ({why})",
                        first_words(&text)
                    ))
                }
            };
            Err(if interim { error.in_doubt() } else { error })
        }
        Ok(Answer::Failed(told)) => match told.into_error() {
            error @ (RequestError::NotOwner { .. } | RequestError::Draining | RequestError::NotStarted) => {
                return Said::NotHere(error);
            }
            error => Err(error),
        },
        Err(reason) => {
            Err(RequestError::unknown(RequestError::Rejected(format!("the answer of {host} cannot be read: {reason}"))))
        }
    };
    Said::Done(outcome.map_err(Box::new))
}
