//! Names of hosts that nobody has seen for a week, and all that is kept of them.
//!
//! Pods get a new name at each start, and whatever is kept by name would be kept for ever. So each start forgets some names: those that have been no
//! member's for [`KEPT`], and own no shard, with or without a lease. `gone` has the names of hosts that were members, by the time since
//! when they are none (`members.lua`); those that an earlier release left without a time get theirs when they are first looked at (`stale.lua`).
//!
//! Forgetting weakens no fence. A commit is fenced by the shard, which knows its owner, and whoever owns one is remembered. A life that comes back
//! after its record was dropped says under which number it had entered, and is told that it is replaced. A claim that was let in before its
//! name was forgotten comes to the shards too late to be granted any (`lease.lua`): the shards' birth numbers of a name are needed no longer then.
//!
//! A life of an earlier release says no number. One that stood still for a week beside hosts of this release is told that the store has lost data, or,
//! if it claims first, enters as a new one.

use std::collections::BTreeSet;
use std::time::Duration;

use stable_interfaces::store::ShardId;

use super::Inner;
use super::failure::Failure;
use super::reply::{Texts, shards};
use super::script::{CLAIMED, Call, FORGET, STALE, VISIT};

/// The time for which a name is kept that is no member's and owns nothing.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// The most names that one start forgets: more than it adds, and a visit of each shard is for all of them.
const MOST_NAMES: usize = 16;
/// The most lives that one start looks at for names that have no time yet.
const MOST_LIVES: usize = 100;

/// A name that has been no member's for so long.
#[derive(Debug)]
struct Stale {
    name: String,
    /// The number of its last start.
    started: String,
    /// The time since when it is no member's, as the server writes it.
    gone: String,
}

impl Inner {
    /// Forgets some of the names that nobody has seen for so long. A name whose shards could not all be asked is left to a later start.
    pub(super) async fn forget_names(&self) -> Result<(), Failure> {
        let (members, names) = self.stale().await?;
        if names.is_empty() {
            return Ok(());
        }
        let claimed = |stale: &Stale| Call::new(&CLAIMED, &[self.keys.fleet(&format!("claimed:{}", stale.name))]);
        let claimed: Vec<Call> = names.iter().map(claimed).collect();
        let claimed = self.leases.run(&claimed).await.into_iter().map(|answer| answer.and_then(shards));
        let claimed = claimed.collect::<Result<Vec<_>, _>>()?;
        let visited = self.visit(&names, &claimed).await?;
        let is_left = |shard: &ShardId| visited.unanswered.contains(shard);
        let asked = names.iter().zip(&claimed).filter(|(_, claimed)| !claimed.iter().any(is_left));
        let calls = asked.map(|(stale, _)| {
            let Stale { name, started, gone } = stale;
            let (claimed, past) = (format!("claimed:{name}"), format!("past:{name}"));
            let keys = ["fleet", "lives", "started", "gone", &claimed, &past].map(|suffix| self.keys.fleet(suffix));
            let call = Call::new(&FORGET, &keys).arg(&members).arg(name).arg(started).arg(gone);
            call.arg(u8::from(visited.owners.contains(name)))
        });
        self.leases.run(&calls.collect::<Vec<_>>()).await.into_iter().collect::<Result<Vec<_>, _>>().map(drop)
    }

    /// The names, and the number of the last change of members at which they are stale.
    async fn stale(&self) -> Result<(String, Vec<Stale>), Failure> {
        let keys = ["fleet", "lives", "started", "members", "gone"].map(|suffix| self.keys.fleet(suffix));
        let call = Call::new(&STALE, &keys).arg(KEPT.as_millis().to_string()).arg(MOST_NAMES).arg(MOST_LIVES);
        let mut answer = Texts::new(self.leases.one(call).await?)?;
        let members = answer.text()?;
        let mut names = Vec::new();
        while !answer.is_done() {
            names.push(Stale { name: answer.text()?, started: answer.text()?, gone: answer.text()? });
        }
        Ok((members, names))
    }

    /// Has the shards that any of these names has claimed forget its starts, and tell whom of them they belong to.
    async fn visit(&self, names: &[Stale], claimed: &[BTreeSet<ShardId>]) -> Result<Visited, Failure> {
        let shards: Vec<ShardId> = claimed.iter().flatten().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let starts: Vec<&str> = names.iter().flat_map(|stale| [&*stale.name, &*stale.started]).collect();
        let call = |some: &&[ShardId]| {
            let keys: Vec<String> = some.iter().flat_map(|shard| self.keys.shard(*shard, ["own"])).collect();
            Call::new(&VISIT, &keys).arg(&starts)
        };
        let chunks = self.chunks(&shards);
        let calls: Vec<Call> = chunks.iter().map(call).collect();
        let mut visited = Visited::default();
        for (some, answer) in chunks.iter().zip(self.leases.run(&calls).await) {
            match answer {
                Ok(owners) => {
                    let mut owners = Texts::new(owners)?;
                    while !owners.is_done() {
                        visited.owners.insert(owners.text()?);
                    }
                }
                Err(_) => visited.unanswered.extend(*some),
            }
        }
        Ok(visited)
    }
}

/// The answers of shards that were visited.
#[derive(Debug, Default)]
struct Visited {
    /// The names that own a shard.
    owners: BTreeSet<String>,
    /// The shards of which there is no answer.
    unanswered: BTreeSet<ShardId>,
}
