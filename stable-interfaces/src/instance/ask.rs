//! The message of a request, as work of its instance; and any work that another host has asked for.

use super::context::Context;
use super::job::Work;
use super::kind::InterfaceCore;
use super::living::Home;
use super::turn::awaken;
use super::{Handle, StableInterface};
use crate::error::{Outcome, RequestError};
use crate::forward::table::Writing;
use crate::quiet::Quiet;

/// Handles a message.
pub(crate) struct Ask<M>(pub(crate) M);

impl<I: Handle<M>, M: Send + 'static> Work<I> for Ask<M> {
    type Reply = I::Reply;

    fn write(&self, interface: &InterfaceCore<I>) -> Writing<I::Reply, I::Error> {
        interface.forwards.write(&self.0)
    }

    async fn run(self, state: &mut Home<I>, cx: &mut Context) -> Outcome<I::Reply, I::Error> {
        // It may be dropped while a panic of the instance being built unwinds.
        let message = Quiet::new(self.0);
        let instance = awaken(state, cx).await?;
        let message = message.into_inner().expect("the message is there until it is handled");
        instance.handle(cx, message).await.map_err(|error| RequestError::handler(error).into())
    }
}

/// Does work that came from another host, and goes to no third one.
pub(crate) struct Here<W>(pub(crate) W);

impl<I: StableInterface, W: Work<I>> Work<I> for Here<W> {
    type Reply = W::Reply;
    const IS_STOP: bool = W::IS_STOP;

    async fn run(self, state: &mut Home<I>, cx: &mut Context) -> Outcome<W::Reply, I::Error> {
        self.0.run(state, cx).await
    }
}
