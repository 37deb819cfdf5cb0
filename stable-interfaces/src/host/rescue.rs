//! The rescue of a host whose store has lost what it had acknowledged: it saves the alarms that are still in memory, and ends.
//!
//! Memory and store differ then, so nothing here may go on as if they did not, and nothing is written as an owner: other processes
//! may own the shards by now. Instead each alarm is posted to its instance as a directive to set it again, for the next owner,
//! whoever that is. Alarms beyond the windows' horizons, inboxes and storage are not in memory and cannot be saved.

use std::time::Duration;

use crate::directive::Directive;
use crate::error::WithCauses;
use crate::shared::{Forget, Health, HostCore};
use crate::store::client::Backoff;
use crate::store::{Addressed, AlarmRow, NewMessage, Store, StoreError};
use crate::sync::Arc;

/// The most alarms in one call of the store, and the most bytes, roughly.
const MAX_ALARMS: usize = 256;
const MAX_BYTES: usize = 1024 * 1024;

/// The time for which the alarms that a host knew when its lease ran out are worth saving. An outage and a restored copy take hours; a machine that was
/// suspended for a week knows nothing that is of use.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// The alarms that are to be saved.
#[derive(Debug)]
pub(crate) struct Rescue {
    alarms: Vec<Arc<AlarmRow>>,
}

impl Rescue {
    /// Takes what is in memory, and gives up all shards: no handler, commit or alarm of this host begins after this.
    pub(crate) fn begin(host: &HostCore, why: &StoreError) -> Rescue {
        host.begin_rescue();
        let mut alarms = host.shards.alarms_in_memory();
        if host.lease_over_for() > MAX_AGE {
            // Memory is that of long ago: others have had the time to handle and change what it knows.
            alarms.clear();
        }
        tracing::error!(
            host = %host.name, alarms = alarms.len(), error = %WithCauses(why),
            "the store has lost what it had acknowledged; posting the alarms in memory to their next owner, then this host stops"
        );
        for (shard, epoch) in host.shards.owned().collect::<Vec<_>>() {
            host.shards.lose(shard, epoch);
        }
        let interfaces = host.interfaces.lock().clone();
        for interface in interfaces {
            interface.forget(Forget::All);
        }
        Rescue { alarms }
    }

    /// Posts it all, trying for as long as a host tries to start, and stops the host.
    pub(crate) async fn finish(self, host: &HostCore, store: &dyn Store) {
        let mut backoff = Backoff::new(&*host.clock, &*host.random);
        let count = self.alarms.len();
        let mut saved = 0;
        'all: for chunk in chunks(host, &self.alarms) {
            loop {
                let Err(error) = store.post(&chunk).await else { break };
                // Repeated also where it may have got through: better set twice than lost.
                if backoff.over(host.options.start_timeout) || !error.is_retryable() {
                    tracing::error!(host = %host.name, error = %WithCauses(&error), "alarms in memory could not be saved");
                    break 'all;
                }
                backoff.pause().await;
            }
            saved += chunk.len();
            metrics::counter!(crate::metrics::ALARMS_SAVED).increment(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        }
        tracing::error!(host = %host.name, saved, of = count, "this host ends; start it anew");
        host.stop(Health::StoreLost);
    }
}

/// The alarms as directives in the inboxes of their instances, as many at a time as one call of the store should carry.
fn chunks(host: &HostCore, alarms: &[Arc<AlarmRow>]) -> Vec<Vec<NewMessage>> {
    let (mut chunks, mut bytes) = (vec![Vec::new()], 0);
    for row in alarms {
        let addressed = Addressed::directive(&row.name.interface, &row.name.instance, Directive::restore(row));
        let message = match addressed {
            Ok(addressed) => addressed.into_message(&host.fleet, &*host.random),
            Err(error) => {
                tracing::error!(instance = %row.name, alarm = %row.id, error = %WithCauses(&error), "an alarm cannot be saved");
                continue;
            }
        };
        bytes += message.body.len();
        match chunks.last_mut() {
            Some(last) if last.len() < MAX_ALARMS && bytes <= MAX_BYTES => last.push(message),
            _ => {
                bytes = message.body.len();
                chunks.push(vec![message]);
            }
        }
    }
    chunks.retain(|chunk| !chunk.is_empty());
    chunks
}
