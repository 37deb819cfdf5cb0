//! The end of a request that answers it: a message from another host takes its turn like one of this host, with its callers and its time,
//! and is never sent on.

use std::convert::Infallible;
use std::fmt;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::Instrument as _;

use super::arrival::Arrival;
use super::call::{self, CALL};
use super::door::{refused, unhandled};
use super::table::{AnswerFn, Arrived, Errors, Json, read_as, write_as};
use super::told::Told;
use super::traces::Traces;
use super::wire::{Answer, Request};
use crate::clock::within;
use crate::error::{ContextError, RequestError};
use crate::instance::ask::{Ask, Here};
use crate::instance::job::Work;
use crate::instance::kind::InterfaceCore;
use crate::instance::once::Once;
use crate::instance::{Handle, StableInterface};
use crate::once::OnceKey;
use crate::quiet::{Quiet, guarded};
use crate::shared::Health;
use crate::store::ShardId;
use crate::sync::Arc;
use crate::transport::{Answering, Codec, MAX_MESSAGE_BYTES};

/// Answers a request of another host for an instance of this interface.
pub(crate) fn answer<I: StableInterface>(core: &Arc<InterfaceCore<I>>, request: &Request<'_>) -> Answering {
    if core.host.health() == Health::NotStarted {
        return refused(&RequestError::NotStarted);
    }
    if let Some(answer) = core.forwards.question(request.message) {
        return answer(core, request.body);
    }
    let answer: AnswerFn<I> = match request.message {
        CALL => call::answer,
        message => match core.forwards.answer(message) {
            Some(answer) => answer,
            None => return unknown(core, format_args!("messages named {message:?} of other hosts")),
        },
    };
    let Request { given, waits, callers, sent_by, .. } = request;
    let arrival = Arrival::new(core.host.clock.elapsed(), *given, *waits, callers, *sent_by);
    let sent = |key| OnceKey::sent(key, request.body, request.since, core.host.clock.now());
    let answering = answer(core, Arrived { id: request.id, key: request.key.map(sent), body: request.body, arrival });
    match request.trace {
        Some(trace) => Box::pin(answering.instrument(Traces::span(core.host.options.traces.as_deref(), trace))),
        None => answering,
    }
}

/// Refuses what the program of this host does not have.
pub(crate) fn unknown<I: StableInterface>(core: &InterfaceCore<I>, what: fmt::Arguments<'_>) -> Answering {
    refused(&unhandled(&core.host.name, &core.host.options.build, what))
}

/// Answers a message of type `M`. Captured where the interface is registered.
pub(crate) fn answer_message<I, M, C, F>(core: &Arc<InterfaceCore<I>>, arrived: Arrived<'_>) -> Answering
where
    I: Handle<M>,
    I::Reply: Serialize + DeserializeOwned,
    M: DeserializeOwned + Send + 'static,
    C: Errors<I::Error>,
    F: Codec,
{
    let (key, arrived) = (arrived.key, Arrived { key: None, ..arrived });
    let key = match key.transpose() {
        Ok(key) => key,
        Err(error) => return refused(&error.into()),
    };
    // One with a key is JSON, of which its key has the digest.
    let message = if key.is_some() { read::<M>(arrived.body) } else { read_message::<M, F>(arrived.body) };
    let message = match message {
        Ok(message) => message.into_inner().expect("the message is there when it has been read"),
        Err(error) => return refused(&error),
    };
    let write = |outcome| written_as::<I::Reply, I::Error, C, F>(outcome).encode();
    match key {
        None => do_here(core, arrived, Quiet::new(Ask(message)), write),
        Some(key) => do_here(core, arrived, Quiet::new(Once::served(key, message, core.options.keep)), write),
    }
}

/// Has an instance of this host do the work that has arrived for it, and writes the answer.
pub(crate) fn do_here<I: StableInterface, W: Work<I>>(
    core: &Arc<InterfaceCore<I>>,
    arrived: Arrived<'_>,
    work: Quiet<W>,
    write: impl FnOnce(Result<W::Reply, RequestError<I::Error>>) -> Bytes + Send + 'static,
) -> Answering {
    let Arrived { id, body, arrival, key: _ } = arrived;
    let (core, id, bytes): (_, Box<str>, _) = (core.clone(), id.into(), body.len());
    Box::pin(async move {
        let Some(work) = core.until_owned(&id, &arrival, bytes, work).await else {
            let holder = core.host.fleet.shard_of(&id).map(|shard| core.host.holder(shard));
            let holder = holder.unwrap_or_else(|_| core.host.name.clone());
            return Answer::<Bytes>::Failed(Told::of(&RequestError::NotOwner { holder })).encode();
        };
        write(arrival.run(core.ask(&id, Here(work))).await)
    })
}

/// Reads what another host has sent.
pub(super) fn read<M: DeserializeOwned>(body: &[u8]) -> Result<Quiet<M>, RequestError<Infallible>> {
    read_message::<M, Json>(body)
}

/// As [`read`], in a form that may be the application's own.
fn read_message<M: DeserializeOwned, F: Codec>(body: &[u8]) -> Result<Quiet<M>, RequestError<Infallible>> {
    match guarded(|| read_as::<M, F>(body)) {
        Ok(Ok(message)) => Ok(Quiet::new(message)),
        Ok(Err(error)) => Err(ContextError::not_a::<M>("a message of another host", error).into()),
        Err(panic) => Err(RequestError::Rejected(format!("the message panicked when it was read: {panic}"))),
    }
}

impl<I: StableInterface> InterfaceCore<I> {
    /// Waits while the shard is to come here and has not: a host that gives it up sends its requests here at once. Gives back the work, or
    /// drops it if the shard is another host's.
    async fn until_owned<W>(&self, id: &str, arrival: &Arrival, bytes: usize, work: Quiet<W>) -> Option<W> {
        let host = &self.host;
        // What cannot be an ID is refused with that, behind this.
        if let Ok(shard) = host.fleet.shard_of(id)
            && host.shards.epoch(shard).is_none()
        {
            let _place = host.reach().filter(|_| self.may_wait(shard, arrival))?.place_to_wait(bytes)?;
            let left = arrival.turn_until().saturating_sub(host.clock.elapsed());
            let owned = host.wait_owned_while(shard, || self.may_wait(shard, arrival));
            within(&*host.clock, left, owned).await.filter(|is_owned| *is_owned)?;
        }
        work.into_inner()
    }

    /// Tells whether a request waits here for its shard: it is to come here, and nobody has it, or whoever has it has sent the request on. One
    /// of a handler waits in the latter case alone: the host that gives up the shard may be waiting for that handler, and then serves it.
    fn may_wait(&self, shard: ShardId, arrival: &Arrival) -> bool {
        let host = &self.host;
        let holder = host.holder(shard);
        let is_free = *holder == *host.name;
        let may_wait = match arrival.sent_by() {
            Some(sender) => is_free || *holder == *sender,
            None => is_free && !arrival.is_of_handler(),
        };
        may_wait && host.health() == Health::Running && host.is_placed_here(shard)
    }
}

/// The outcome of a request as its answer.
pub(crate) fn written<R: Serialize, E, C: Errors<E>>(outcome: Result<R, RequestError<E>>) -> Answer<Vec<u8>> {
    written_as::<R, E, C, Json>(outcome)
}

/// As [`written`], with the reply in a form that may be the application's own.
fn written_as<R: Serialize, E, C: Errors<E>, F: Codec>(outcome: Result<R, RequestError<E>>) -> Answer<Vec<u8>> {
    let failed = |error: RequestError<Infallible>| Answer::Failed(Told::of(&error));
    match outcome {
        Ok(reply) => {
            let reply = Quiet::new(reply);
            // From here on it has happened, whatever becomes of the reply.
            match guarded(|| write_as::<_, F>(&reply.as_ref())) {
                Ok(Ok(reply)) if reply.len() <= MAX_MESSAGE_BYTES => Answer::Reply(reply),
                Ok(Ok(reply)) => {
                    let what = format!("the reply has {} bytes, more than {MAX_MESSAGE_BYTES}", reply.len());
                    failed(RequestError::unknown(RequestError::TooLarge(what)))
                }
                Ok(Err(error)) => failed(RequestError::unknown(ContextError::not_written("the reply", error).into())),
                Err(panic) => {
                    let what = format!("the reply panicked when it was written: {panic}");
                    failed(RequestError::unknown(RequestError::Rejected(what)))
                }
            }
        }
        Err(error) => match error.split() {
            Ok((error, interim)) => {
                let error = Quiet::new(error);
                let error = guarded(|| error.into_inner().map(C::write));
                let what = match error {
                    Ok(Some(Ok(error))) if error.len() <= MAX_MESSAGE_BYTES => {
                        return Answer::Handler { interim: interim.is_set(), error };
                    }
                    Ok(Some(Ok(error))) => format!("has {} bytes, more than {MAX_MESSAGE_BYTES}", error.len()),
                    Ok(Some(Err(why))) => format!("cannot be written: {why}"),
                    Ok(None) | Err(_) => "cannot be written".to_owned(),
                };
                let error = RequestError::Rejected(format!("the handler failed with an error that {what}"));
                failed(if interim.is_set() { error.in_doubt() } else { error })
            }
            Err(error) => failed(error),
        },
    }
}
