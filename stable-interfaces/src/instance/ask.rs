//! The message of a request, as work of its instance: asked on this host, or by another one.

use super::Handle;
use super::context::Context;
use super::job::Work;
use super::kind::InterfaceCore;
use super::living::Home;
use super::turn::awaken;
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

/// Handles a message that came from another host, and goes to no third one.
pub(crate) struct Served<M>(pub(crate) M);

impl<I: Handle<M>, M: Send + 'static> Work<I> for Served<M> {
    type Reply = I::Reply;

    async fn run(self, state: &mut Home<I>, cx: &mut Context) -> Outcome<I::Reply, I::Error> {
        Ask(self.0).run(state, cx).await
    }
}
