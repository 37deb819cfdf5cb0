//! The place of an instance: ID → shard → host.
//!
//! Of a list of hosts this is all there is; in a live fleet the second step is [`placement`]'s, over the hosts that hold a lease.
//!
//! Pure functions of the ID, the shard count and the host list, so every host of a fleet computes the same answer without
//! asking anyone. The numbers are frozen: a store full of alarms was written under them, and [`HASH_VERSION`] names them.
//!
//! *Shard*: XXH3-64 of the ID's bytes, scaled onto the shard count by multiply-shift. It follows the order of the hashes, so
//! doubling the count splits every shard in two. *Host*: jump consistent hash (Lamping and Veach, "A Fast, Minimal Memory,
//! Consistent Hash Algorithm", 2014) of the mixed shard number, so adding a host at the end of the list takes an equal part
//! from each of the others and moves nothing between them.

pub(crate) mod placement;

use std::ops::RangeInclusive;

use crate::id::{InvalidId, check_id};
use crate::store::ShardId;
use crate::sync::Arc;

/// The version of the functions that map IDs to shards and shards to hosts. A store records it at the first claim and refuses hosts with another.
pub const HASH_VERSION: u32 = 1;
/// See [`Fleet::MAX_SHARDS`].
pub(crate) const MAX_SHARDS: u32 = 1 << 20;
/// See [`Fleet::MAX_HOSTS`].
pub(crate) const MAX_HOSTS: usize = 1 << 16;
/// See [`Fleet::MAX_HOST_BYTES`].
pub(crate) const MAX_HOST_BYTES: usize = 255;

/// The number of shards per host below which the shares get uneven, down to a host without any.
const FEW_SHARDS_PER_HOST: usize = 16;

/// The hosts of a service in their order, and the number of shards they divide among them.
///
/// Every host must be given the same list and the same count. Cloning is cheap.
///
/// ```
/// # use stable_interfaces::Fleet;
/// let fleet = Fleet::expand("host-{0..3}", 1024)?;
/// assert_eq!(fleet.hosts().len(), 4);
/// assert_eq!(fleet.locate("order-17")?.host, "host-1");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Fleet(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Names in the order given, without duplicates: jump's bucket numbers are positions in it.
    hosts: Vec<Arc<str>>,
    shards: u32,
    /// The host of each shard; empty in a live fleet. `u16`, so that a million shards are small: [`MAX_HOSTS`] positions just fit.
    owners: Box<[u16]>,
}

/// The place of an instance, as [`Fleet::locate`] returns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location<'a> {
    /// The instance's shard.
    pub shard: ShardId,
    /// The name of the host that is to own the shard; empty for a [live](Fleet::live) fleet, whose hosts only its store knows.
    pub host: &'a str,
}

impl Fleet {
    /// The most shards a fleet may have.
    pub const MAX_SHARDS: u32 = MAX_SHARDS;
    /// The most hosts a fleet may have.
    pub const MAX_HOSTS: usize = MAX_HOSTS;
    /// The longest host name, in bytes of UTF-8.
    pub const MAX_HOST_BYTES: usize = MAX_HOST_BYTES;

    /// A fleet of `hosts`, in this order, with `shards` shards.
    ///
    /// A service that grows adds hosts *at the end*: then the n+1st takes about 1/(n+1) of the shards and the others keep
    /// the rest. The shard count cannot change once a store was written; take at least 16 per host you may ever have
    /// (fewer logs a warning).
    ///
    /// # Errors
    /// [`FleetError`] says which host or number is wrong.
    pub fn new<H: AsRef<str>>(hosts: impl IntoIterator<Item = H>, shards: u32) -> Result<Fleet, FleetError> {
        let mut names: Vec<Arc<str>> = Vec::new();
        for host in hosts {
            let host = host.as_ref();
            check_host(host)?;
            if names.len() == MAX_HOSTS {
                return Err(FleetError::TooManyHosts);
            }
            names.push(host.into());
        }
        if names.is_empty() {
            return Err(FleetError::NoHosts);
        }
        let mut sorted: Vec<&str> = names.iter().map(|name| &**name).collect();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(FleetError::DuplicateHost(twice[0].to_owned()));
        }
        check_shards(shards)?;
        if (shards as usize) < names.len() {
            return Err(FleetError::FewerShardsThanHosts { shards, hosts: names.len() });
        }
        if (shards as usize) < names.len() * FEW_SHARDS_PER_HOST {
            tracing::warn!(
                shards,
                hosts = names.len(),
                "fewer than 16 shards per host: some hosts may own few or none"
            );
        }
        let owners = (0..shards).map(|shard| owner(shard, names.len())).collect();
        Ok(Fleet(Arc::new(Inner { hosts: names, shards, owners })))
    }

    /// A fleet of whichever hosts hold a lease in its store, with `shards` shards: hosts join by being started, under any name, and leave by
    /// being drained or by dying.
    ///
    /// A shard is placed on one of the hosts by a pure function of their names. One without a living owner is claimed at once by the host that
    /// it is placed on; one with a living owner moves when that hands it over. So the shards of a host that dies go on elsewhere when its
    /// lease is over, and those of one that comes back under its name, sooner than that, are its own again. The shard count cannot change
    /// once a store was written; take at least 16 for each host that you may ever have.
    ///
    /// It needs a [store](crate::HostBuilder::store). The places of IDs in it are known to its [hosts](crate::Host::owner_of) alone.
    ///
    /// # Errors
    /// [`FleetError::NoShards`] and [`FleetError::TooManyShards`].
    ///
    /// ```
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use stable_interfaces::{Fleet, Host, MemoryStore};
    ///
    /// let host = Host::builder("pod-7f9c", Fleet::live(1_024)?).store(MemoryStore::new()).start().await?;
    /// assert_eq!(host.shards().len(), 1_024); // Nobody else is there.
    /// # Ok(())
    /// # }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example()).unwrap();
    /// ```
    pub fn live(shards: u32) -> Result<Fleet, FleetError> {
        check_shards(shards)?;
        Ok(Fleet(Arc::new(Inner { hosts: Vec::new(), shards, owners: Box::default() })))
    }

    /// Tells whether its hosts are those that hold a lease, and not a list.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.0.hosts.is_empty()
    }

    /// A fleet whose host names follow a pattern: each `{first..last}` in it stands for the whole numbers from `first` to
    /// `last`, both included.
    ///
    /// `"host-{0..3}"` is `host-0` to `host-3`; with several ranges the last one varies fastest, so a fleet that grows
    /// enlarges its *first* range. A first number written with leading zeros pads all of them to its width: `{08..11}` is
    /// `08`, `09`, `10`, `11`. A pattern without a range is one host.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`FleetError::Pattern`].
    pub fn expand(pattern: &str, shards: u32) -> Result<Fleet, FleetError> {
        Fleet::new(expand(pattern)?, shards)
    }

    /// The host names, in order; none for a [live](Self::live) fleet.
    #[must_use]
    pub fn hosts(&self) -> &[Arc<str>] {
        &self.0.hosts
    }

    /// The number of shards.
    #[must_use]
    pub fn shards(&self) -> u32 {
        self.0.shards
    }

    /// The shard of the instances with this ID, whatever their interface.
    ///
    /// # Errors
    /// [`InvalidId`] if the text cannot be an ID.
    pub fn shard_of(&self, id: &str) -> Result<ShardId, InvalidId> {
        check_id(id)?;
        Ok(self.shard_of_hash(hash_id(id)))
    }

    /// The shard of an ID whose [`hash_id`] is known.
    #[inline]
    pub(crate) fn shard_of_hash(&self, hash: u64) -> ShardId {
        let scaled = (u128::from(hash) * u128::from(self.0.shards)) >> 64;
        #[allow(clippy::cast_possible_truncation, reason = "below the shard count, which is a u32")]
        ShardId(scaled as u32)
    }

    /// The position in [`hosts`](Self::hosts) of the host that is to own `shard`.
    ///
    /// # Panics
    /// If `shard` is not below [`shards`](Self::shards), or the fleet is [live](Self::live).
    #[must_use]
    #[inline]
    pub fn owner_of(&self, shard: ShardId) -> usize {
        usize::from(self.0.owners[shard.0 as usize])
    }

    /// The name of the host that is to own `shard`.
    ///
    /// # Panics
    /// If `shard` is not below [`shards`](Self::shards), or the fleet is [live](Self::live).
    #[must_use]
    #[inline]
    pub fn host_of(&self, shard: ShardId) -> &Arc<str> {
        &self.0.hosts[self.owner_of(shard)]
    }

    /// The shard and the host of the instances with this ID.
    ///
    /// # Errors
    /// [`InvalidId`] if the text cannot be an ID.
    pub fn locate(&self, id: &str) -> Result<Location<'_>, InvalidId> {
        let shard = self.shard_of(id)?;
        Ok(Location { shard, host: if self.is_live() { "" } else { self.host_of(shard) } })
    }

    /// The position of `host` in [`hosts`](Self::hosts), if it belongs to the fleet.
    #[must_use]
    pub fn index_of(&self, host: &str) -> Option<usize> {
        self.0.hosts.iter().position(|name| &**name == host)
    }
}

/// The reason why there can be no such fleet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// The host list is empty.
    #[error("a fleet needs at least one host")]
    NoHosts,
    /// More than [`Fleet::MAX_HOSTS`] hosts.
    #[error("a fleet has at most {MAX_HOSTS} hosts")]
    TooManyHosts,
    /// The name stands twice in the host list, or the pattern makes it twice.
    #[error("host {0:?} is named twice")]
    DuplicateHost(String),
    /// The name is empty, longer than [`Fleet::MAX_HOST_BYTES`], or has a control character.
    #[error("host name {name:?} {problem}")]
    HostName {
        /// The name.
        name: String,
        /// The fault in it.
        problem: &'static str,
    },
    /// The shard count is zero.
    #[error("a fleet needs at least one shard")]
    NoShards,
    /// The shard count is above [`Fleet::MAX_SHARDS`].
    #[error("{shards} shards are more than {MAX_SHARDS}")]
    TooManyShards {
        /// The shard count.
        shards: u32,
    },
    /// Some hosts would own nothing whatever happens.
    #[error("{shards} shards are fewer than {hosts} hosts")]
    FewerShardsThanHosts {
        /// The shard count.
        shards: u32,
        /// The number of hosts.
        hosts: usize,
    },
    /// The pattern is not well formed.
    #[error("host pattern {pattern:?}: {problem}")]
    Pattern {
        /// The pattern, whole.
        pattern: String,
        /// The fault in it, and its place.
        problem: String,
    },
}

/// The hash that [`Fleet::shard_of`] scales onto the shards.
#[inline]
pub(crate) fn hash_id(id: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(id.as_bytes())
}

/// Spreads shard numbers over all of `u64`, as jump needs.
fn mix(shard: u32) -> u64 {
    finalize(u64::from(shard))
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014; constants by David
/// Stafford).
fn finalize(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The one of `hosts` hosts that is to own `shard`.
///
/// The crate adds 1 unchecked and would overflow on one key in 2^64; only mixed shard numbers reach it, and a test walks them all.
fn owner(shard: u32, hosts: usize) -> u16 {
    let host = jump_consistent_hash::hash(mix(shard), hosts);
    u16::try_from(host).expect("jump's result is below the number of hosts, which is at most 65,536")
}

fn check_shards(shards: u32) -> Result<(), FleetError> {
    match shards {
        0 => Err(FleetError::NoShards),
        1..=MAX_SHARDS => Ok(()),
        _ => Err(FleetError::TooManyShards { shards }),
    }
}

pub(crate) fn check_host(name: &str) -> Result<(), FleetError> {
    let problem = match name.len() {
        0 => "is empty",
        1..=MAX_HOST_BYTES if name.chars().any(char::is_control) => "has a control character",
        1..=MAX_HOST_BYTES => return Ok(()),
        _ => "is longer than 255 bytes",
    };
    Err(FleetError::HostName { name: name.to_owned(), problem })
}

/// A part of a host pattern.
enum Part<'a> {
    Text(&'a str),
    Range { numbers: RangeInclusive<u64>, width: usize },
}

/// All names that a host pattern stands for, the last range varying fastest.
fn expand(pattern: &str) -> Result<Vec<String>, FleetError> {
    let parts = parse(pattern).map_err(|problem| FleetError::Pattern { pattern: pattern.to_owned(), problem })?;
    let mut names = vec![String::new()];
    for part in parts {
        match part {
            Part::Text(text) => names.iter_mut().for_each(|name| name.push_str(text)),
            Part::Range { numbers, width } => {
                // Compared before anything is built: a pattern may stand for more names than there is memory.
                let more = (numbers.end() - numbers.start()).checked_add(1).ok_or(FleetError::TooManyHosts)?;
                if more.saturating_mul(names.len() as u64) > MAX_HOSTS as u64 {
                    return Err(FleetError::TooManyHosts);
                }
                names = names
                    .iter()
                    .flat_map(|name| numbers.clone().map(move |number| format!("{name}{number:0width$}")))
                    .collect();
            }
        }
    }
    Ok(names)
}

fn parse(pattern: &str) -> Result<Vec<Part<'_>>, String> {
    let mut parts = Vec::new();
    let mut rest = pattern;
    while let Some(brace) = rest.find(['{', '}']) {
        let at = pattern.len() - rest.len() + brace;
        if rest.as_bytes()[brace] == b'}' {
            return Err(format!("the brace closed at byte {at} was not opened"));
        }
        let inside = &rest[brace + 1..];
        let Some(end) = inside.find('}') else {
            return Err(format!("the brace opened at byte {at} is not closed"));
        };
        parts.push(Part::Text(&rest[..brace]));
        parts.push(range(&inside[..end])?);
        rest = &inside[end + 1..];
    }
    parts.push(Part::Text(rest));
    Ok(parts)
}

fn range(text: &str) -> Result<Part<'static>, String> {
    let malformed = || format!("{{{text}}} is not a range of two whole numbers, such as {{0..3}}");
    let (first, last) = text.split_once("..").ok_or_else(malformed)?;
    let number = |digits: &str| -> Result<u64, String> {
        // `parse` alone would take a sign.
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed());
        }
        digits.parse().map_err(|_| format!("{digits} in {{{text}}} is too large"))
    };
    let numbers = number(first)?..=number(last)?;
    if numbers.is_empty() {
        return Err(format!("{{{text}}} runs backwards"));
    }
    let width = if first.len() > 1 && first.starts_with('0') { first.len() } else { 0 };
    if width > MAX_HOST_BYTES {
        return Err(format!("a number in {{{text}}} is longer than a host name"));
    }
    Ok(Part::Range { numbers, width })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Jump as in the paper, with the addition that the crate leaves unchecked.
    fn checked_jump(mut key: u64, buckets: i64) -> Option<i64> {
        let (mut bucket, mut next) = (-1_i64, 0_i64);
        while next < buckets {
            bucket = next;
            key = key.wrapping_mul(2_862_933_555_777_941_757).checked_add(1)?;
            #[allow(clippy::cast_possible_truncation, reason = "the paper's own rounding")]
            {
                next = ((bucket + 1) as f64 * ((1_i64 << 31) as f64 / ((key >> 33) + 1) as f64)) as i64;
            }
        }
        Some(bucket)
    }

    #[test]
    fn no_shard_number_overflows_the_unchecked_addition_of_jump() {
        // The keys of fewer hosts are a prefix of those of more, so the largest fleet stands for all.
        for shard in 0..MAX_SHARDS {
            let host = checked_jump(mix(shard), MAX_HOSTS as i64).expect("no overflow");
            assert_eq!(i64::from(owner(shard, MAX_HOSTS)), host, "shard {shard}");
        }
    }

    #[test]
    fn mix_and_hash_are_the_published_functions() {
        assert_eq!(mix(0), 0);
        assert_eq!(mix(1), 0x5692_161d_100b_05e5);
        assert_eq!(hash_id(""), 0x2d06_8005_38d3_94c2);
        assert_eq!(hash_id("a"), 0xe6c6_32b6_1e96_4e1f);
    }

    #[test]
    fn the_shards_are_equal_slices_of_the_hashes() {
        let fleet = Fleet::new(["a"], 1024).expect("a fleet");
        let slice = 1_u64 << 54;
        for shard in 0..1024_u32 {
            let first = u64::from(shard) * slice;
            assert_eq!(fleet.shard_of_hash(first), ShardId(shard));
            assert_eq!(fleet.shard_of_hash(first + (slice - 1)), ShardId(shard));
        }
    }
}
