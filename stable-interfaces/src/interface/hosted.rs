//! An interface as its host sees it: what the host may do to all instances of it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::wake::{carry_out, hold};
use crate::connection::Closed;
use crate::fleet::hash_id;
use crate::forward::serve;
use crate::forward::wire::Request;
use crate::id::interface_of;
use crate::instance::drive::run_inline;
use crate::instance::kind::{InterfaceCore, WakeFn};
use crate::instance::slot::{Slot, Taken};
use crate::instance::stop::stop_job_of;
use crate::instance::submit::Route;
use crate::instance::{StableInterface, chain};
use crate::shards::delivery::Delivery;
use crate::shards::wake::Wake;
use crate::shared::{AnyInterface, Forget, Held, SHORTEST};
use crate::store::ShardId;
use crate::sync::Arc;
use crate::transport::Answering;

/// Into how many steps the idle timeout is divided.
const IDLE_STEPS: u32 = 4;

impl<I: StableInterface> AnyInterface for InterfaceCore<I> {
    fn name(&self) -> &str {
        &self.name
    }

    fn check_options(&self) -> Result<(), &'static str> {
        if self.options.handler_timeout < SHORTEST {
            return Err("handler_timeout must be at least 1 ms");
        }
        if self.options.max_crashes == Some(0) {
            return Err("max_crashes must be at least 1");
        }
        if self.options.keep.most == 0 {
            return Err("max_kept_replies must be at least 1");
        }
        if self.options.max_instances == 0 { Err("max_instances must be at least 1") } else { Ok(()) }
    }

    fn handles(&self, wake: &Wake) -> bool {
        self.handler_of(wake).is_some()
    }

    fn answer(self: Arc<Self>, request: &Request<'_>) -> Answering {
        serve::answer(&self, request)
    }

    fn wake(self: Arc<Self>, delivery: Delivery) {
        let wake = self.handler_of(delivery.wake());
        if let Some(wake) = wake {
            wake(&self, delivery, None);
        }
    }

    fn hold(self: Arc<Self>, delivery: Delivery) -> Option<Box<dyn Held>> {
        hold(&self, self.handler_of(delivery.wake())?, delivery)
    }

    fn stop_all(self: Arc<Self>, of: Option<&[ShardId]>) {
        for slot in self.slots_of(of) {
            let Some(epoch) = self.host.shards.epoch(slot.shard) else {
                if let Some(next) = slot.forget(Forget::Lost) {
                    run_inline(&slot, next);
                }
                continue;
            };
            let (id, route) = (slot.id.clone(), Route { hash: hash_id(&slot.id), shard: slot.shard, epoch });
            let taken = slot.take(epoch);
            if matches!(taken, Taken::Gone) {
                continue;
            }
            if let Err(error) =
                self.queue(slot, taken, stop_job_of(Closed::parting(&self.host, route.shard)), &id, route)
            {
                tracing::warn!(interface = I::NAME, %id, %error, "an instance could not be stopped");
            }
        }
    }

    fn forget(self: Arc<Self>, which: Forget) {
        for slot in self.table.slots() {
            if let Some(next) = slot.forget(which) {
                run_inline(&slot, next);
            }
        }
    }

    fn sweep(self: Arc<Self>) -> Duration {
        for slot in self.table.grow_older(IDLE_STEPS) {
            self.passivate(&slot, false);
        }
        self.options.idle_timeout / IDLE_STEPS
    }

    fn running(&self) -> usize {
        self.table.len()
    }

    fn busy(&self) -> usize {
        self.table.slots().iter().filter(|slot| slot.is_busy()).count()
    }

    fn with_busy_tasks(&self, of: Option<&[ShardId]>) -> Vec<ShardId> {
        self.slots_of(of).iter().filter(|slot| slot.has_busy_tasks()).map(|slot| slot.shard).collect()
    }

    fn in_memory(&self, of: &[ShardId]) -> BTreeSet<ShardId> {
        self.slots_of(Some(of)).iter().map(|slot| slot.shard).collect()
    }

    fn name_instance(&self, address: usize) -> Option<String> {
        let slot = self.table.slots().into_iter().find(|slot| Arc::as_ptr(slot).addr() == address)?;
        Some(chain::Described(&*slot).to_string())
    }

    fn abandon(&self) {
        self.forwards.abandon();
        for slot in self.table.clear() {
            slot.abandon();
        }
    }
}

impl<I: StableInterface> InterfaceCore<I> {
    /// All instances, or those of some shards.
    fn slots_of(&self, of: Option<&[ShardId]>) -> Vec<Arc<Slot<I>>> {
        match of {
            Some(of) => self.table.slots_where(|slot| of.binary_search(&slot.shard).is_ok()),
            None => self.table.slots(),
        }
    }

    /// The function that handles this, if the interface was registered with one.
    fn handler_of(&self, wake: &Wake) -> Option<WakeFn<I>> {
        match wake {
            Wake::Alarm(_) => self.fire,
            Wake::Message(message) if interface_of(&message.name.interface).1 => Some(carry_out::<I>),
            Wake::Message(_) => self.take,
        }
    }
}
