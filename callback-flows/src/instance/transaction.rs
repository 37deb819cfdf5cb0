//! The turn in which a step is a transaction of the application.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use alarm_backends::postgres::PostgresContext as _;
use stable_interfaces::clock::{Clock, Sleep};
use stable_interfaces::{Context, ContextError, Handle, InstanceRef, RequestError};

use super::pump::{AGAIN, Bell};
use super::write::put_page;
use super::{FlowInstance, Loaded, TurnError};
use crate::blocked::{Blocked, BlockedKind};
use crate::journal::{Entry, Event, Page};
use crate::transaction::Asked;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The reason why a transaction did not come to its end.
enum Failure {
    Statements(BoxError),
    Context(ContextError),
}

impl From<ContextError> for Failure {
    fn from(error: ContextError) -> Failure {
        Failure::Context(error)
    }
}

/// Asks for the transactions that steps wait for.
pub(super) struct Transact(Arc<Bell>);

impl Handle<Transact> for FlowInstance {
    type Reply = ();

    async fn handle(&mut self, cx: &mut Context, Transact(bell): Transact) -> Result<(), TurnError> {
        self.transact(cx, &bell).await
    }
}

/// Brings the turns that transactions are waiting for, if there are any. Says whether there is anything left to pump for.
pub(super) async fn pump_transactions(me: &InstanceRef<FlowInstance>, bell: &Arc<Bell>, clock: &dyn Clock) -> bool {
    while bell.has_transactions.swap(false, Ordering::AcqRel) {
        match me.request(Transact(bell.clone())).await {
            Ok(()) => {}
            Err(RequestError::Closed) => return false,
            Err(error) => {
                tracing::debug!(flow = me.id(), %error, "a transaction of a flow was refused; asking again");
                bell.has_transactions.store(true, Ordering::Release);
                clock.sleep(AGAIN).await;
            }
        }
    }
    true
}

async fn in_time<T>(
    limit: Duration,
    mut over: Sleep,
    work: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, BoxError> {
    let mut work = pin!(work);
    let ended = poll_fn(|task| match work.as_mut().poll(task) {
        Poll::Pending => over.as_mut().poll(task).map(|()| Err(format!("it did not end within {limit:?}").into())),
        ended => ended,
    });
    ended.await
}

impl FlowInstance {
    /// Carries out the transaction that has waited for longest.
    async fn transact(&mut self, cx: &mut Context, bell: &Arc<Bell>) -> Result<(), TurnError> {
        let Loaded::Going(going) = &mut self.loaded else { return Ok(()) };
        if !Arc::ptr_eq(&going.bell, bell) {
            return Ok(());
        }
        self.write_rest(cx).await?;
        let Loaded::Going(going) = &mut self.loaded else { return Ok(()) };
        let Some(Asked { step, limit, statements, failed }) = going.engine.next_transaction() else { return Ok(()) };
        let ((seq, settled_to), page, clock) = (going.engine.next_entry(), going.pages, cx.clock());
        let name = step.clone();
        let committed = cx.interim_transaction(async move |tx| {
            let outcome = in_time(limit, clock.sleep(limit), statements(tx)).await.map_err(Failure::Statements)?;
            let entry = Entry { seq, at: clock.now(), event: Event::Result { step, outcome } };
            put_page(tx.context(), page, &Page { entries: vec![entry.clone()], settled_to, ..Page::default() })?;
            Ok::<_, Failure>(entry)
        });
        match committed.await {
            Ok(entry) => {
                going.noted(|| Page { entries: vec![entry.clone()], settled_to, ..Page::default() });
                going.engine.append_written(entry);
            }
            // Whoever waits for the step takes it as an attempt that failed.
            Err(Failure::Statements(error)) => drop(failed.send(error)),
            Err(Failure::Context(ContextError::NotHere(_) | ContextError::NoStore)) => {
                let message = format!("its step `{name}` is a transaction, and the store of its host is not Postgres");
                going.engine.block(Blocked::new(BlockedKind::NotConfigured, message));
            }
            Err(Failure::Context(error @ (ContextError::Fenced | ContextError::Unknown))) => return Err(error.into()),
            Err(Failure::Context(error)) => drop(failed.send(error.into())),
        }
        self.advance_fully(cx).await
    }
}
