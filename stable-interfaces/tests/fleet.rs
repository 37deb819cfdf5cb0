//! Places of instances. The vectors in this file can never change: stores were written under them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use stable_interfaces::store::{HASH_VERSION, ShardId};
use stable_interfaces::{Fleet, FleetError, InvalidId};

fn fleet(hosts: usize, shards: u32) -> Fleet {
    Fleet::new((0..hosts).map(|host| format!("host-{host}")), shards).expect("a fleet")
}

fn names(pattern: &str) -> Vec<String> {
    let fleet = Fleet::expand(pattern, 1024).expect("a pattern");
    fleet.hosts().iter().map(|name| name.to_string()).collect()
}

fn pattern_problem(pattern: &str) -> String {
    let error = Fleet::expand(pattern, 1024).expect_err(pattern);
    let FleetError::Pattern { pattern: whole, problem } = &error else {
        return format!("not the pattern's: {error:?}");
    };
    assert_eq!(whole, pattern);
    problem.clone()
}

/// The shards whose host is not the same in both fleets, and the host they move to.
fn moved(before: &Fleet, after: &Fleet) -> Vec<(ShardId, usize)> {
    (0..before.shards())
        .map(ShardId)
        .filter(|&shard| before.owner_of(shard) != after.owner_of(shard))
        .map(|shard| (shard, after.owner_of(shard)))
        .collect()
}

#[test]
fn ids_keep_their_shards_forever() {
    assert_eq!(HASH_VERSION, 1, "other vectors need another version");
    for (id, of_1, of_16, of_1000, of_1024, of_max) in [
        ("a", 0, 14, 901, 923, 945_251),
        ("order-17", 0, 2, 137, 141, 144_590),
        ("0194f3c2-7a6b-7c11-9d52-0c5b1f1a2e33", 0, 1, 92, 94, 96789),
        ("Zürich/Straße 8 🚲", 0, 7, 489, 501, 513_224),
        (" \"quoted\" {0..3}\n", 0, 1, 106, 108, 111_445),
        (&"x".repeat(512), 0, 1, 72, 74, 76417),
    ] {
        let shards = [1, 16, 1000, 1024, Fleet::MAX_SHARDS].map(|count| fleet(1, count).shard_of(id).expect("an ID").0);
        assert_eq!(shards, [of_1, of_16, of_1000, of_1024, of_max], "{id}");
    }
}

#[test]
fn shards_keep_their_hosts_forever() {
    for (hosts, owners) in [
        (1, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (2, [0, 1, 1, 1, 0, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0]),
        (3, [0, 2, 1, 1, 0, 0, 1, 0, 0, 2, 1, 1, 2, 2, 1, 0]),
        (4, [0, 2, 1, 1, 3, 0, 1, 3, 0, 2, 1, 1, 3, 2, 1, 0]),
        (7, [0, 6, 1, 1, 3, 0, 6, 3, 4, 2, 1, 1, 3, 6, 1, 0]),
        (64, [41, 15, 1, 41, 36, 16, 38, 41, 34, 14, 60, 48, 41, 49, 33, 25]),
    ] {
        let fleet = fleet(hosts, 1024);
        let found: Vec<usize> = (0..16).map(|shard| fleet.owner_of(ShardId(shard * 67 + 1))).collect();
        assert_eq!(found, owners, "{hosts} hosts");
    }
}

#[test]
fn a_location_is_the_shard_of_the_id_and_the_host_of_the_shard() {
    let fleet = Fleet::new(["red", "green", "blue"], 1024).expect("a fleet");
    for id in ["a", "order-17", "another"] {
        let location = fleet.locate(id).expect("an ID");
        assert_eq!(location.shard, fleet.shard_of(id).expect("an ID"));
        assert_eq!(location.host, &**fleet.host_of(location.shard));
        assert_eq!(fleet.index_of(location.host), Some(fleet.owner_of(location.shard)));
    }
    assert_eq!(fleet.index_of("yellow"), None);
    assert_eq!(fleet.locate(""), Err(InvalidId::Empty));
    assert_eq!(fleet.shard_of("a\0b"), Err(InvalidId::Nul));
    assert_eq!(fleet.locate(&"x".repeat(513)), Err(InvalidId::TooLong { bytes: 513, max: 512 }));
}

#[test]
fn growing_from_3_to_4_hosts_moves_about_256_of_1024_shards_where_the_original_moved_766() {
    let moved = moved(&fleet(3, 1024), &fleet(4, 1024));
    assert!((200..=310).contains(&moved.len()), "{} shards moved", moved.len());
    assert!(moved.iter().all(|&(_, to)| to == 3), "{moved:?}");
}

#[test]
fn a_host_added_at_the_end_takes_its_share_and_nothing_else_moves() {
    for hosts in 1..=40 {
        let moved = moved(&fleet(hosts, 8192), &fleet(hosts + 1, 8192));
        assert!(moved.iter().all(|&(_, to)| to == hosts), "{hosts} hosts: a shard moved between old hosts");
        let share = 8192.0 / (hosts + 1) as f64;
        let off = (moved.len() as f64 - share).abs() / share.sqrt();
        assert!(off < 4.0, "{hosts} hosts: {} shards moved, {share} expected", moved.len());
    }
}

#[test]
fn doubling_the_shards_splits_every_shard_in_two() {
    let (before, after) = (fleet(1, 1000), fleet(1, 2000));
    let mut halves = vec![[0_usize; 2]; 1000];
    for n in 0..50_000 {
        let id = format!("instance-{n}");
        let (old, new) = (before.shard_of(&id).expect("an ID").0, after.shard_of(&id).expect("an ID").0);
        assert_eq!(new / 2, old, "{id}");
        halves[old as usize][(new % 2) as usize] += 1;
    }
    assert!(halves.iter().flatten().all(|&ids| ids > 0), "each half has its share");
}

#[test]
fn ids_spread_evenly_over_shards_and_shards_over_hosts() {
    let fleet = fleet(8, 1024);
    let (mut of_shard, mut of_host) = (vec![0_usize; 1024], [0_usize; 8]);
    for n in 0..102_400 {
        let location = fleet.locate(&format!("order-{n:08}")).expect("an ID");
        of_shard[location.shard.0 as usize] += 1;
        of_host[fleet.index_of(location.host).expect("a host of the fleet")] += 1;
    }
    // 100 per shard and 12,800 per host on average; five standard deviations of a fair draw for the shards. A host's share
    // varies with the number of its shards, 128 on average.
    assert!(of_shard.iter().all(|ids| (50..=150).contains(ids)), "{of_shard:?}");
    assert!(of_host.iter().all(|ids| (9_000..=16_600).contains(ids)), "{of_host:?}");
}

#[test]
fn every_range_of_a_pattern_expands_and_the_last_varies_fastest() {
    assert_eq!(names("host-{0..3}"), ["host-0", "host-1", "host-2", "host-3"]);
    assert_eq!(
        names("{1..2}.rack{7..9}.eu"),
        ["1.rack7.eu", "1.rack8.eu", "1.rack9.eu", "2.rack7.eu", "2.rack8.eu", "2.rack9.eu"]
    );
    assert_eq!(names("a{5..5}"), ["a5"]);
    assert_eq!(names("single"), ["single"]);
    assert_eq!(names("{18446744073709551615..18446744073709551615}"), ["18446744073709551615"]);
}

#[test]
fn a_lower_bound_with_leading_zeros_sets_the_width() {
    assert_eq!(names("h{08..11}"), ["h08", "h09", "h10", "h11"]);
    assert_eq!(names("h{099..100}"), ["h099", "h100"]);
    assert_eq!(names("h{09..100}").last().map(String::as_str), Some("h100"));
    assert_eq!(names("h{0..10}").first().map(String::as_str), Some("h0"));
}

#[test]
fn a_malformed_pattern_says_what_is_wrong() {
    assert_eq!(pattern_problem("host-{0..3"), "the brace opened at byte 5 is not closed");
    assert_eq!(pattern_problem("a{0..1}-0..3}"), "the brace closed at byte 12 was not opened");
    assert_eq!(pattern_problem("host-{3..0}"), "{3..0} runs backwards");
    assert_eq!(
        pattern_problem("{0..99999999999999999999}"),
        "99999999999999999999 in {0..99999999999999999999} is too large"
    );
    for bad in [
        "{}", "{..}", "{1}", "{1..}", "{..1}", "{a..b}", "{+1..2}", "{-1..2}", "{1...2}", "{ 1..2}", "{1,2}",
        "{{0..1}}",
    ] {
        let inner = &bad[1..bad.find('}').expect("a brace")];
        assert_eq!(pattern_problem(bad), format!("{{{inner}}} is not a range of two whole numbers, such as {{0..3}}"));
    }
    let wide = format!("{{{:0>300}..1}}", 0);
    assert!(pattern_problem(&wide).ends_with("is longer than a host name"));
}

#[test]
fn a_pattern_of_too_many_hosts_is_refused_before_it_is_built() {
    assert_eq!(
        Fleet::expand("{1..65536}", Fleet::MAX_SHARDS).expect("the largest fleet").hosts().len(),
        Fleet::MAX_HOSTS
    );
    for huge in
        ["{0..65536}", "{0..18446744073709551615}", "{1..256}{1..257}", "{1..65536}{1..65536}{1..65536}{1..65536}"]
    {
        assert_eq!(Fleet::expand(huge, Fleet::MAX_SHARDS).expect_err(huge), FleetError::TooManyHosts);
    }
    assert_eq!(
        Fleet::new((0..).map(|n: u32| n.to_string()), Fleet::MAX_SHARDS).expect_err("endless"),
        FleetError::TooManyHosts
    );
}

#[test]
fn a_fleet_has_hosts_and_no_host_twice() {
    assert_eq!(Fleet::new([""; 0], 16).expect_err("no hosts"), FleetError::NoHosts);
    assert_eq!(Fleet::new(["a", "b", "a"], 64).expect_err("twice"), FleetError::DuplicateHost("a".into()));
    assert_eq!(
        Fleet::expand("h{1..11}{1..12}", 4096).expect_err("h111 both ways"),
        FleetError::DuplicateHost("h111".into())
    );
}

#[test]
fn a_host_name_is_1_to_255_bytes_without_control_characters() {
    let problem = |name: &str| match Fleet::new(["good", name], 64).expect_err("a bad name") {
        FleetError::HostName { name: bad, problem } => {
            assert_eq!(bad, name);
            problem
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(problem(""), "is empty");
    assert_eq!(problem(&"é".repeat(128)), "is longer than 255 bytes");
    for bad in ["a\0b", "a\nb", "\u{7f}", "\u{85}"] {
        assert_eq!(problem(bad), "has a control character");
    }
    assert!(Fleet::new(["x".repeat(255)], 64).is_ok());
    assert!(matches!(Fleet::expand("", 64), Err(FleetError::HostName { .. })), "the empty pattern is one empty name");
}

#[test]
fn the_shard_count_is_between_the_number_of_hosts_and_the_maximum() {
    assert_eq!(Fleet::new(["a"], 0).expect_err("none"), FleetError::NoShards);
    assert_eq!(
        Fleet::new(["a"], Fleet::MAX_SHARDS + 1).expect_err("many"),
        FleetError::TooManyShards { shards: 1_048_577 }
    );
    assert_eq!(
        Fleet::new(["a", "b", "c"], 2).expect_err("fewer than hosts"),
        FleetError::FewerShardsThanHosts { shards: 2, hosts: 3 }
    );
    assert_eq!(Fleet::new(["a", "b", "c"], 3).expect("enough").shards(), 3);
}

/// Counts warnings, and takes part in nothing else.
#[derive(Clone, Default)]
struct Warnings(Arc<AtomicUsize>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn fewer_than_16_shards_per_host_log_a_warning() {
    let warnings = Warnings::default();
    tracing::subscriber::with_default(warnings.clone(), || {
        fleet(4, 64);
        assert_eq!(warnings.0.load(Ordering::Relaxed), 0);
        fleet(4, 63);
        assert_eq!(warnings.0.load(Ordering::Relaxed), 1);
    });
}
