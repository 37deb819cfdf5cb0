//! A request with a key: handled once, however often it is asked.
//!
//! The reply is stored under the key in the commit of the handler's effects, so there are both or none; a request with that key then gets that
//! reply, and no handler runs. It takes its turn like any message: of two that come at once the second finds the reply of the first, and
//! waits at the output gate until that is durable. So what is not known to have happened can be asked again, and is asked again here.

use std::marker::PhantomData;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::chain::{self, Chain};
use super::context::Context;
use super::job::Work;
use super::kind::InterfaceCore;
use super::living::Home;
use super::range::KeyRange;
use super::turn::awaken;
use super::{Handle, StableInterface};
use crate::clock::within;
use crate::connection::Closed;
use crate::error::{ContextError, Outcome, RequestError};
use crate::forward::send::LONGEST_PAUSE_AFTER;
use crate::forward::table::{Writing, write_guarded};
use crate::id::MAX_VALUE_BYTES;
use crate::json;
use crate::once::{self, KEYS, Keep, Known, Ledger, OnceKey, reply_key};
use crate::quiet::Quiet;
use crate::shared::Health;
use crate::store::client::backoff;
use crate::store::{InstanceName, StoreError};
use crate::sync::Arc;

/// Handles a message, unless its key has been answered.
pub(crate) struct Once<M> {
    key: OnceKey,
    message: M,
    /// The message as JSON, to be sent on; `None` if it came from another host, and goes to no third one.
    body: Option<Bytes>,
    keep: Keep,
}

impl<M> Once<M> {
    /// A message that has come from another host.
    pub(crate) fn served(key: OnceKey, message: M, keep: Keep) -> Once<M> {
        Once { key, message, body: None, keep }
    }
}

impl<I, M> Work<I> for Once<M>
where
    I: Handle<M>,
    I::Reply: Serialize + DeserializeOwned,
    M: Send + 'static,
{
    type Reply = I::Reply;

    fn write(&self, interface: &InterfaceCore<I>) -> Writing<I::Reply, I::Error> {
        interface.forwards.write_keyed::<M, I::Reply>(self.body.as_deref()?, &self.key)
    }

    async fn run(self, state: &mut Home<I>, cx: &mut Context) -> Outcome<I::Reply, I::Error> {
        let Once { key, message, keep, .. } = self;
        let message = Quiet::new(message);
        let name = once::name_of(&cx.instance().name());
        if let Some(reply) = recall(state, cx, &name, &key).await? {
            return Ok(reply);
        }
        let message = message.into_inner().expect("the message is there until it is handled");
        let living = state.as_mut().expect("it was built to look for the key");
        let reply = living.handle(cx, message).await.map_err(RequestError::handler)?;
        let reply = Quiet::new(reply);
        let kept = match to_keep(&key, reply.as_ref()) {
            Ok(kept) => kept,
            Err(error) => {
                // Nothing of it may stay, in memory either.
                cx.end(Closed::Reset);
                return Err(error.into());
            }
        };
        let ledger = living.ledger.as_mut().expect("it was read to look for the key");
        let kept = ledger.keep(key, kept, cx.now(), keep, &name);
        for op in kept.ops {
            cx.record_own(op);
        }
        if kept.early > 0 {
            metrics::counter!(crate::metrics::ONCE_FORGOTTEN, "interface" => I::NAME).increment(kept.early);
        }
        Ok(reply.into_inner().expect("the reply is there until it is given"))
    }
}

/// Looks for the reply of a message that is no longer there to be handled.
struct Recall<R> {
    key: OnceKey,
    reply: PhantomData<fn() -> R>,
}

impl<I: StableInterface, R: DeserializeOwned + Send + 'static> Work<I> for Recall<R> {
    type Reply = Option<R>;

    async fn run(self, state: &mut Home<I>, cx: &mut Context) -> Outcome<Option<R>, I::Error> {
        let name = once::name_of(&cx.instance().name());
        recall(state, cx, &name, &self.key).await
    }
}

/// The reply that is kept for a key, if it has been answered under. The instance is in memory after that, and so are its keys.
async fn recall<I: StableInterface, R: DeserializeOwned>(
    state: &mut Home<I>,
    cx: &mut Context,
    name: &InstanceName,
    asked: &OnceKey,
) -> Outcome<Option<R>, I::Error> {
    cx.require_store()?;
    awaken(state, cx).await?;
    let living = state.as_mut().expect("it has just been built");
    let ledger = match &mut living.ledger {
        Some(ledger) => ledger,
        unread => {
            let rows = cx.values_of(name, KeyRange::prefix(KEYS)).await?;
            cx.require_lease()?;
            let ledger = Ledger::read(&rows).map_err(|unreadable| unreadable.of(cx.shard(), name))?;
            unread.insert(Box::new(ledger))
        }
    };
    let number = match ledger.find(asked) {
        Known::No => return Ok(None),
        Known::OtherMessage => return Err(RequestError::KeyReused { key: asked.key.clone() }.into()),
        Known::Forgotten => {
            let what =
                format!("more replies have been kept since than may be, and that to {:?} may be forgotten", asked.key);
            return Err(RequestError::unknown(RequestError::Rejected(what)).into());
        }
        Known::Reply(number) => number,
    };
    let Some(kept) = cx.value_of(name, &reply_key(number)).await? else {
        return Err(RequestError::unknown(once::missing(cx.shard(), name, number).into()).into());
    };
    // It has happened, whatever becomes of the reply.
    let reply = serde_json::from_slice(&kept).map_err(|error| {
        let what = format!("the reply kept for the request key {:?}", asked.key);
        RequestError::unknown(ContextError::not_a::<R>(what, error).into())
    })?;
    metrics::counter!(crate::metrics::ONCE_REPLAYED, "interface" => I::NAME).increment(1);
    Ok(Some(reply))
}

/// The reply as it is kept.
fn to_keep(key: &OnceKey, reply: Option<&impl Serialize>) -> Result<Bytes, ContextError> {
    let what = || format!("the reply to the request key {:?}", key.key);
    let kept = json::to_vec(&reply).map_err(|error| ContextError::not_json(what(), error))?;
    if kept.len() > MAX_VALUE_BYTES { Err(ContextError::too_large(what(), kept.len())) } else { Ok(kept.into()) }
}

/// Says whether the same request may come through later, and its error is no answer of its instance.
fn is_to_repeat<E>(error: &RequestError<E>) -> bool {
    match error {
        RequestError::Unknown(cause) => cause.is_retryable(),
        RequestError::Unreachable { .. }
        | RequestError::Fenced
        | RequestError::LeaseLost
        | RequestError::Replaced
        | RequestError::StoreLost => true,
        RequestError::Store(error) => matches!(**error, StoreError::Unavailable(_) | StoreError::NotApplied(_)),
        _ => false,
    }
}

/// The error of a request that has surely not happened, after one that left this open.
fn not_happened<E>(error: RequestError<E>) -> RequestError<E> {
    match error {
        RequestError::Unknown(cause) => RequestError::definite(*cause),
        error => error,
    }
}

impl<I: StableInterface> InterfaceCore<I> {
    /// Sends a message with a key to the instance, and does so again while that may help.
    pub(crate) async fn ask_once<M>(
        self: &Arc<Self>,
        id: &str,
        key: &str,
        message: M,
    ) -> Result<I::Reply, RequestError<I::Error>>
    where
        I: Handle<M>,
        I::Reply: Serialize + DeserializeOwned,
        M: Serialize + Send + 'static,
    {
        let message = Quiet::new(message);
        self.require_started()?;
        let body: Bytes =
            write_guarded::<I::Error>(|| "the message".to_owned(), || serde_json::to_vec(&message.as_ref()))?.into();
        let key = OnceKey::new(key, &body)?;
        let clock = &self.host.clock;
        let callers = chain::origin(|| clock.elapsed(), self.options.handler_timeout).callers;
        let until = || clock.elapsed().saturating_add(self.options.handler_timeout);
        let until = callers.as_deref().map_or_else(until, Chain::turn_until);
        let first = clock.now();
        let once = |key, message| {
            let work = Once { key, message, body: Some(body.clone()), keep: self.options.keep };
            self.ask(id, work)
        };
        let message = message.into_inner().expect("the message is there until it is sent");
        let mut outcome = once(key.clone(), message).await;
        let (mut tries, mut in_doubt) = (0, false);
        loop {
            let error = match outcome {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            let left = until.saturating_sub(clock.elapsed());
            // Who has set a limit of its own for a host that cannot be reached has something else to do then.
            let is_given_up = matches!(error, RequestError::Unreachable { .. }) && self.options.reach_timeout.is_some();
            if !is_to_repeat(&error)
                || (is_given_up && !in_doubt)
                || left.is_zero()
                || self.host.health() >= Health::Stopped
            {
                // What was sent before, and not answered, may come to be handled after this.
                return Err(if in_doubt { error.in_doubt() } else { error });
            }
            in_doubt |= error.may_have_happened();
            let key = if in_doubt { key.again(first) } else { key.clone() };
            let message = match self.forwards.read::<M, I::Reply>(&body) {
                Some(Ok(message)) => Some(Quiet::new(message)),
                None if in_doubt => None,
                _ => return Err(if in_doubt { error.in_doubt() } else { error }),
            };
            metrics::counter!(crate::metrics::ONCE_REPEATED, "interface" => I::NAME).increment(1);
            tracing::debug!(interface = I::NAME, id, key = &*key.key, %error, "a request is asked again");
            let pause = backoff(&*self.host.random, tries.min(LONGEST_PAUSE_AFTER)).min(left);
            clock.sleep(pause).await;
            tries += 1;
            let left = left.saturating_sub(pause);
            let answer = match message {
                Some(message) => {
                    let message = message.into_inner().expect("the message is there until it is sent");
                    within(&**clock, left, Box::pin(once(key, message))).await
                }
                None => {
                    let recall = Recall { key, reply: PhantomData };
                    match within(&**clock, left, Box::pin(self.ask(id, recall))).await {
                        Some(Ok(Some(reply))) => Some(Ok(reply)),
                        Some(Ok(None)) => return Err(not_happened(error)),
                        Some(Err(error)) => Some(Err(error)),
                        None => None,
                    }
                }
            };
            let Some(answer) = answer else { return Err(error.in_doubt()) };
            outcome = answer;
        }
    }
}
