//! An interface as the parts of its host see it that know no instance.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use crate::commit::gate::Ticket;
use crate::forward::wire::Request;
use crate::shards::delivery::Delivery;
use crate::shards::wake::Wake;
use crate::store::{Op, ShardId};
use crate::sync::Arc;
use crate::transport::Answering;

/// The instances that a host forgets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forget {
    /// Instances of shards that the host owns no more.
    Lost,
    /// All: its lease has run out.
    All,
}

/// An instance that is kept for something due until the mark of that is durable.
pub(crate) trait Held: Send {
    /// The mark to write; `None` if what was due is not any more, or may not be.
    fn mark(&self) -> Option<Op>;
    /// Begins the handler, once the commit of the mark is durable.
    fn begin(self: Box<Self>, marked: Option<Ticket>);
}

/// An interface as the host's own tasks see it, whatever its type.
pub(crate) trait AnyInterface: Debug + Send + Sync {
    fn name(&self) -> &str;
    /// Refuses options that cannot work; the text names the first.
    fn check_options(&self) -> Result<(), &'static str>;
    /// Says whether it was registered with what this needs.
    fn handles(&self, wake: &Wake) -> bool;
    /// Answers a request of another host for one of its instances.
    fn answer(self: Arc<Self>, request: &Request<'_>) -> Answering;
    /// Hands something due to its instance.
    fn wake(self: Arc<Self>, delivery: Delivery);
    /// Takes the instance of something that is to be marked before it is handled. One that is not free is handed it as by
    /// [`wake`](Self::wake), and this is `None`.
    fn hold(self: Arc<Self>, delivery: Delivery) -> Option<Box<dyn Held>>;
    /// Stops every instance in good order, or those of some shards, which are ascending; completes through the host's tasks.
    fn stop_all(self: Arc<Self>, of: Option<&[ShardId]>);
    /// Drops idle instances that this host may not run any more. Those that are busy go when their turn ends.
    fn forget(self: Arc<Self>, which: Forget);
    /// Passivates what has been idle for long enough; to be called again after the time returned.
    fn sweep(self: Arc<Self>) -> Duration;
    /// The number of instances in memory.
    fn running(&self) -> usize;
    /// The number of them that are busy.
    fn busy(&self) -> usize;
    /// The shard of each instance with a task that is not parked, of all or of some shards, which are ascending.
    fn with_busy_tasks(&self, of: Option<&[ShardId]>) -> Vec<ShardId>;
    /// The shards among these, which are ascending, of which instances are in memory.
    fn in_memory(&self, of: &[ShardId]) -> BTreeSet<ShardId>;
    /// Names the instance at this address of memory, if it is one of these.
    fn name_instance(&self, address: usize) -> Option<String>;
    /// Forgets every instance at once.
    fn abandon(&self);
}
