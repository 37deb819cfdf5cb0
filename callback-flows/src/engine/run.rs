//! One run of a flow's code: a future, from the first line of the code to all that is to be done after the last.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::task::coop::Unconstrained;

use crate::flow::Flow;
use crate::journal::Ended;
use crate::step::cut;

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The code of a flow: makes its future from the input.
pub(crate) type Code = Arc<dyn Fn(Flow, Bytes) -> BoxFuture<Result<Bytes, Stop>> + Send + Sync>;

/// A step that undoes another.
pub(crate) type Undo = Box<dyn FnOnce(Flow) -> BoxFuture<()> + Send>;

/// The reason why a flow's code came to no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    Failed(Arc<str>),
    /// The flow is to go on as another run, with this input as JSON.
    Continue(Bytes),
}

impl From<Arc<str>> for Stop {
    fn from(error: Arc<str>) -> Stop {
        Stop::Failed(error)
    }
}

impl From<String> for Stop {
    fn from(error: String) -> Stop {
        Stop::Failed(error.into())
    }
}

impl From<&str> for Stop {
    fn from(error: &str) -> Stop {
        Stop::Failed(error.into())
    }
}

/// The end of a run.
#[derive(Debug)]
pub(super) enum End {
    Over(Ended),
    Continue(Bytes),
}

pub(super) enum Running {
    Unconstrained(Unconstrained<BoxFuture<End>>),
    #[cfg(test)]
    Budgeted(BoxFuture<End>),
}

impl Running {
    pub(super) fn poll(&mut self, task: &mut Context<'_>) -> Poll<End> {
        match self {
            Running::Unconstrained(code) => Pin::new(code).poll(task),
            #[cfg(test)]
            Running::Budgeted(code) => code.as_mut().poll(task),
        }
    }
}

/// A run of a flow, from the first line of its code to all that is to be done after the last. It keeps room for one of both at a time.
pub(super) struct Run {
    flow: Flow,
    stage: Stage,
}

enum Stage {
    First(Code, Bytes),
    Code(BoxFuture<Result<Bytes, Stop>>),
    After(BoxFuture<End>),
    Over,
}

impl Run {
    /// The run of this code with this input.
    pub(super) fn of(flow: Flow, code: Code, input: Bytes) -> Run {
        Run { flow, stage: Stage::First(code, input) }
    }
}

impl Future for Run {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<End> {
        let Run { flow, stage } = &mut *self;
        loop {
            match stage {
                Stage::First(code, input) => {
                    let code = code(flow.clone(), std::mem::take(input));
                    *stage = Stage::Code(code);
                }
                Stage::Code(code) => {
                    let end = match ready!(code.as_mut().poll(task)) {
                        Ok(value) => End::Over(Ended::Done(value)),
                        Err(Stop::Continue(input)) => End::Continue(input),
                        Err(Stop::Failed(error)) => {
                            flow.shared().state.lock().cold.made().is_undoing = true;
                            End::Over(Ended::Failed(cut(error.to_string()).into()))
                        }
                    };
                    // Whatever the code still holds goes before anything is undone.
                    *stage = Stage::Over;
                    if !matches!(end, End::Over(Ended::Failed(_))) && !flow.shared().has_unposted() {
                        return Poll::Ready(end);
                    }
                    *stage = Stage::After(Box::pin(after(flow.clone(), end)));
                }
                Stage::After(after) => return after.as_mut().poll(task),
                Stage::Over => return Poll::Pending,
            }
        }
    }
}

/// Undoes what is to be undone after such an end, and waits for posts that are to go out.
pub(super) async fn after(flow: Flow, end: End) -> End {
    if matches!(end, End::Over(Ended::Failed(_) | Ended::Cancelled)) {
        while let Some(undo) = flow.shared().pop_undo() {
            undo(flow.clone()).await;
        }
    }
    flow.shared().all_posted().await;
    end
}
