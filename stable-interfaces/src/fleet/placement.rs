//! The place of each shard among hosts that come and go: rendezvous hashing with bounded loads.
//!
//! Pure functions of the hosts' names and the shard count: whatever order the names come in, and however often one is said, everybody who
//! knows the same names computes the same table. Each shard goes to the host with the greatest [`score`] for it (rendezvous: Thaler and
//! Ravishankar, "Using name-based mappings to increase hit rates", 1998) that has room; there is room for 1.25 of an even share (bounded
//! loads: Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2018). So a host that leaves gives its shards to the
//! others in equal parts, one that comes takes an equal part from each, and next to nothing moves beside that.
//!
//! The numbers are frozen: hosts of several releases run side by side, and where they computed different tables no shard would come to
//! rest. A later rule gets a greater [`PLACEMENT_VERSION`], and the one in force is the lowest that a living host knows.

use crate::store::ShardId;
use crate::sync::Arc;

/// The newest version of the rule by which shards are placed on the members of a fleet that this program knows.
pub(crate) const PLACEMENT_VERSION: u32 = 1;

/// A host's index for a shard that nobody can have: there is no host.
const NOBODY: u16 = u16::MAX;

/// The hosts of a fleet at one time, and the one that each shard is placed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placement {
    /// The version of the rule that made it.
    rule: u32,
    /// Ascending, each once.
    hosts: Vec<Arc<str>>,
    /// The position in `hosts`, by shard.
    places: Box<[u16]>,
}

impl Placement {
    /// Places so many shards on hosts of these names, by the rule of that version, of which there is one so far. Past 65,535 hosts the last
    /// names get none.
    pub(crate) fn new(rule: u32, hosts: impl IntoIterator<Item = Arc<str>>, shards: u32) -> Placement {
        let mut hosts: Vec<Arc<str>> = hosts.into_iter().collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts.truncate(usize::from(NOBODY));
        let seeds: Vec<u64> = hosts.iter().map(|host| seed(host)).collect();
        let most = most_of(shards, hosts.len());
        let mut loads = vec![0_u32; hosts.len()];
        let mut place = |shard: u32| {
            let with_room = seeds.iter().zip(&loads).enumerate().filter(|(_, (_, load))| **load < most);
            // Of two hosts with one score the later name has it.
            let best = with_room.max_by_key(|(host, (seed, _))| (score(**seed, shard), *host)).map(|(host, _)| host);
            best.map_or(NOBODY, |host| {
                loads[host] += 1;
                u16::try_from(host).expect("there are fewer hosts than that")
            })
        };
        let places = (0..shards).map(&mut place).collect();
        Placement { rule, hosts, places }
    }

    /// Tells whether it is the one of this rule on just these hosts, of which names may come twice and in any order.
    pub(crate) fn is_of(&self, rule: u32, hosts: &[Arc<str>]) -> bool {
        let mut hosts: Vec<_> = hosts.iter().collect();
        hosts.sort_unstable();
        hosts.dedup();
        self.rule == rule && self.hosts.iter().eq(hosts)
    }

    /// The host that a shard is placed on; `None` where there is no host.
    ///
    /// # Panics
    /// If there is no such shard.
    pub(crate) fn host_of(&self, shard: ShardId) -> Option<&Arc<str>> {
        self.hosts.get(usize::from(self.places[shard.0 as usize]))
    }

    /// The shards that are placed on `host`, ascending.
    pub(crate) fn shards_of(&self, host: &str) -> Vec<ShardId> {
        let Ok(host) = self.hosts.binary_search_by(|name| (**name).cmp(host)) else { return Vec::new() };
        let placed = (0..).map(ShardId).zip(&self.places);
        placed.filter(|(_, place)| usize::from(**place) == host).map(|(shard, _)| shard).collect()
    }
}

/// The version of the rule in force among hosts that know these: the lowest, so that a fleet of two releases agrees.
pub(crate) fn in_force(known: impl IntoIterator<Item = u32>) -> u32 {
    known.into_iter().fold(PLACEMENT_VERSION, u32::min).max(1)
}

/// The most shards that one of so many hosts gets: 1.25 of an even share, rounded up.
fn most_of(shards: u32, hosts: usize) -> u32 {
    let most = (u64::from(shards) * 5).div_ceil((hosts as u64 * 4).max(1));
    u32::try_from(most).unwrap_or(u32::MAX)
}

/// The number from which the scores of a host of this name are drawn: XXH3-64 of the name's bytes.
fn seed(host: &str) -> u64 {
    super::hash_id(host)
}

/// The claim of the host with this [`seed`] to the shard: output number `shard` of SplitMix64 (Steele, Lea and Flood, "Fast Splittable
/// Pseudorandom Number Generators", 2014) that begins with the seed.
fn score(seed: u64, shard: u32) -> u64 {
    let step = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(shard) + 1);
    super::finalize(seed.wrapping_add(step))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn named(names: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<Arc<str>> {
        names.into_iter().map(|name| name.as_ref().into()).collect()
    }

    fn numbered(hosts: usize) -> Vec<Arc<str>> {
        named((0..hosts).map(|n| format!("host-{n}")))
    }

    fn loads(placement: &Placement) -> BTreeMap<Arc<str>, u32> {
        let mut loads = BTreeMap::new();
        for shard in 0..placement.places.len() {
            let host = placement.host_of(ShardId(u32::try_from(shard).unwrap())).unwrap();
            *loads.entry(host.clone()).or_default() += 1;
        }
        loads
    }

    /// The shards whose host differs, without those that one of the two hosts sets must move: what the one that came has, or had.
    fn moved_beside(before: &Placement, after: &Placement, of: &str) -> (usize, usize) {
        let shards = u32::try_from(before.places.len()).unwrap();
        let (mut needed, mut beside) = (0, 0);
        for shard in (0..shards).map(ShardId) {
            let (old, new) = (before.host_of(shard).unwrap(), after.host_of(shard).unwrap());
            if old != new {
                *(if **old == *of || **new == *of { &mut needed } else { &mut beside }) += 1;
            }
        }
        (needed, beside)
    }

    #[test]
    fn scores_and_seeds_are_the_published_functions() {
        // SplitMix64 from the seed 1234567, as its reference program prints them.
        let outputs = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423_u64];
        assert_eq!([0, 1, 2].map(|shard| score(1_234_567, shard)), outputs);
        assert_eq!(seed("a"), 0xe6c6_32b6_1e96_4e1f);
    }

    #[test]
    fn the_placement_of_version_one_never_changes() {
        assert_eq!(
            PLACEMENT_VERSION, 1,
            "another rule needs golden vectors of its own, and this one stays for older hosts"
        );
        let placement = Placement::new(1, named(["host-0", "host-1", "host-2", "ёлка", "a b"]), 32);
        let found: String =
            placement.places.iter().map(|place| char::from(b'0' + u8::try_from(*place).unwrap())).collect();
        assert_eq!(found, GOLDEN);
        assert_eq!(placement.hosts, named(["a b", "host-0", "host-1", "host-2", "ёлка"]), "by their bytes");
    }

    const GOLDEN: &str = "31432133101212211024423034022103";

    #[test]
    fn a_host_more_or_less_moves_what_it_must_and_next_to_nothing_beside() {
        for hosts in 2..=64 {
            let (fewer, more) =
                (Placement::new(1, numbered(hosts - 1), 1_024), Placement::new(1, numbered(hosts), 1_024));
            let last = format!("host-{}", hosts - 1);
            let (needed, beside) = moved_beside(&fewer, &more, &last);
            let most = most_of(1_024, hosts);
            assert!(needed <= most as usize, "{hosts} hosts: {needed} moved, of at most {most}");
            let few = if hosts <= 8 { 0 } else { 1_024 * 3 / 100 };
            assert!(beside <= few, "{hosts} hosts: {beside} moved between others");
        }
    }

    #[test]
    fn no_host_has_more_than_one_and_a_quarter_of_its_share_and_none_is_left_empty() {
        for hosts in 2..=64 {
            let loads = loads(&Placement::new(1, numbered(hosts), 1_024));
            let most = (1_024.0 * 1.25 / hosts as f64).ceil();
            assert_eq!(loads.len(), hosts, "each has some");
            assert!(loads.values().all(|load| f64::from(*load) <= most), "{hosts} hosts: {loads:?}");
        }
    }

    #[test]
    fn fewer_shards_than_hosts_are_all_placed_and_nobody_has_two() {
        let loads = loads(&Placement::new(1, numbered(64), 5));
        assert_eq!(loads.values().sum::<u32>(), 5);
        assert!(loads.values().all(|load| *load == 1), "{loads:?}");
    }

    #[test]
    fn the_rule_in_force_is_the_oldest_that_a_host_knows() {
        assert_eq!(in_force([PLACEMENT_VERSION + 1, PLACEMENT_VERSION]), PLACEMENT_VERSION);
        assert_eq!(in_force([PLACEMENT_VERSION + 1]), PLACEMENT_VERSION, "this program's own counts");
        assert_eq!(in_force([1, PLACEMENT_VERSION]), 1);
        assert_eq!(in_force([0]), 1, "a host that does not say knows the first");
        let placement = Placement::new(1, numbered(2), 8);
        let mut hosts = numbered(2);
        hosts.reverse();
        assert!(placement.is_of(1, &hosts) && !placement.is_of(2, &hosts) && !placement.is_of(1, &hosts[1..]));
    }

    #[test]
    fn without_a_host_a_shard_is_placed_on_nobody() {
        let placement = Placement::new(1, [], 4);
        assert_eq!(placement.host_of(ShardId(3)), None);
        assert!(placement.shards_of("host-0").is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_names_in_any_order_and_however_often_give_one_balanced_table(
            names in prop::collection::btree_set("[a-zäß日 .-]{1,12}", 2..64),
            shards in 1_u32..700,
            seed in any::<u64>(),
        ) {
            let names = named(&names);
            let placement = Placement::new(1, names.clone(), shards);
            let mut mixed: Vec<_> = names.iter().chain(&names[..names.len() / 2]).cloned().collect();
            let mut rng = fastrand::Rng::with_seed(seed);
            rng.shuffle(&mut mixed);
            prop_assert_eq!(&Placement::new(1, mixed, shards), &placement);
            let most = most_of(shards, names.len());
            let mut all = 0;
            for name in &names {
                let placed = placement.shards_of(name);
                prop_assert!(placed.len() <= most as usize);
                prop_assert!(placed.iter().all(|shard| placement.host_of(*shard) == Some(name)));
                all += placed.len();
            }
            prop_assert_eq!(all, shards as usize, "each shard has one host");
        }

        #[test]
        fn whoever_comes_or_goes_the_others_keep_nearly_all_they_had(
            names in prop::collection::btree_set("[a-z0-9-]{3,12}", 3..32),
            who in any::<prop::sample::Index>(),
        ) {
            let names = named(&names);
            let gone = names[who.index(names.len())].clone();
            let rest = names.iter().filter(|name| **name != gone).cloned();
            let (more, fewer) = (Placement::new(1, names.clone(), 512), Placement::new(1, rest, 512));
            let (needed, beside) = moved_beside(&more, &fewer, &gone);
            prop_assert!(needed <= most_of(512, names.len()) as usize);
            prop_assert!(beside <= 512 / 8, "{} moved between others", beside);
        }
    }
}
