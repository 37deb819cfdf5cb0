//! Lanes on a store in memory of which a part is away, hangs, or refuses; on a paused clock.

use bytes::Bytes;

use super::*;
use crate::Timestamp;
use crate::clock::within;
use crate::commit::gate::Gate;
use crate::fleet::HASH_VERSION;
use crate::shards::firing::Limits;
use crate::store::{Claim, ClaimKind, InstanceName, MemoryStore, Presence};
use crate::testing::{Fault, FaultStore, Method, SeededRandom, SimClock};

const SHARDS: u32 = 4;
const ME: Incarnation = Incarnation(1);
const STORE_TIMEOUT: Duration = Duration::from_secs(2);
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);

fn committer(lanes: u16, store: Arc<dyn Store>, shards: Arc<Shards>, clock: &SimClock) -> Committer {
    let options = CommitOptions {
        lanes,
        store_timeout: STORE_TIMEOUT,
        commit_timeout: COMMIT_TIMEOUT,
        max_queued: 100,
        max_queued_bytes: 10_000,
    };
    let random = Arc::new(SeededRandom::new(1));
    Committer::new(ME, store, shards, Arc::new(clock.clone()), random, options)
}

/// One lane that writes to four shards.
struct World {
    clock: SimClock,
    memory: MemoryStore,
    store: FaultStore,
    shards: Arc<Shards>,
    committer: Arc<Committer>,
    gates: Vec<Arc<Gate>>,
    task: tokio::task::JoinHandle<()>,
}

impl World {
    async fn spread() -> World {
        World::on(MemoryStore::spread).await
    }

    async fn of_lane() -> World {
        World::on(MemoryStore::with_clock).await
    }

    async fn on(make: fn(Arc<dyn Clock>) -> MemoryStore) -> World {
        let clock = SimClock::new(Timestamp::UNIX_EPOCH);
        let memory = make(Arc::new(clock.clone()));
        let store = FaultStore::seeded(Arc::new(memory.clone()), Arc::new(clock.clone()), 1);
        let limits = Limits { max_firing: 1, max_fires_per_second: 1, max_crashes: 1, window_bytes: 1_000_000 };
        let shards = Arc::new(Shards::new(SHARDS, limits, Arc::new(clock.clone())));
        let claim = Claim {
            incarnation: ME,
            host: "host".into(),
            shards: (0..SHARDS).map(ShardId).collect(),
            given_up: Vec::new(),
            shard_count: SHARDS,
            hash_version: HASH_VERSION,
            lease: Duration::from_secs(1_000_000),
            kind: ClaimKind::Start,
            presence: Presence::default(),
        };
        let claimed = store.claim(&claim).await.unwrap();
        for grant in &claimed.granted {
            shards.own(grant.shard, grant.epoch, true, 8, 1_000_000);
        }
        let committer = Arc::new(committer(1, Arc::new(store.clone()), shards.clone(), &clock));
        assert_eq!(committer.open(claimed.overlap).collect::<Vec<_>>(), [Lane(0)]);
        let task = tokio::spawn(committer.clone().run(Lane(0), claimed.sequence));
        let gates = (0..SHARDS).map(|_| Arc::default()).collect();
        World { clock, memory, store, shards, committer, gates, task }
    }

    /// Queues a commit of the only instance of a shard.
    fn push(&self, shard: u32, value: &[u8]) -> Ticket {
        let name = InstanceName { interface: "order".into(), instance: shard.to_string().into() };
        let ops = Arc::new([Op::Put { name, key: "k".into(), value: Bytes::copy_from_slice(value) }]);
        let ticket = self.gates[shard as usize].take_ticket();
        let commit = Commit { shard: ShardId(shard), epoch: Epoch(1), ops, is_shown: false };
        if let Some(refused) = self.committer.push(QueuedCommit::new(Arc::new(commit), ticket.clone(), None)) {
            refused.withdraw(&host_has_stopped());
        }
        ticket
    }

    async fn told(&self, ticket: &Ticket) -> Result<(), Failure> {
        ticket.wait().await
    }

    /// Says whether it is told something within that time.
    async fn told_within(&self, ticket: &Ticket, limit: Duration) -> Option<Result<(), Failure>> {
        within(&self.clock, limit, ticket.wait()).await
    }

    fn stored(&self, shard: u32) -> Option<Vec<u8>> {
        let dump = self.memory.dump();
        let values = &dump.shards.get(&ShardId(shard))?.storage;
        values.values().next().map(|value| value.to_vec())
    }

    fn depth(&self) -> (u64, u64) {
        self.committer.lanes[0].depth.get()
    }
}

#[test]
fn there_are_no_more_lanes_than_the_store_overlaps_writes_or_the_option_says() {
    for (option, overlap, lanes) in [(1, 16, 1), (2, 16, 2), (7, 1, 1), (7, 3, 3), (u16::MAX, u16::MAX, u16::MAX)] {
        let clock = SimClock::new(Timestamp::UNIX_EPOCH);
        let store = Arc::new(MemoryStore::with_clock(Arc::new(clock.clone())));
        let committer = committer(option, store, Arc::new(Shards::open(0)), &clock);
        let opened: Vec<_> = committer.open(NonZeroU16::new(overlap).unwrap()).collect();
        assert_eq!(opened, (0..lanes).map(Lane).collect::<Vec<_>>(), "{option} wanted, {overlap} possible");
        let shards = [ShardId(0), ShardId(1), ShardId(u32::MAX)];
        assert!(shards.iter().all(|shard| !committer.is_full(*shard)), "each shard has its lane");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_unknown_of_one_shard_holds_up_no_other() {
    let world = World::spread().await;
    for seed in 0..20 {
        world.store.set_away([ShardId(0), ShardId(3)]);
        let away = [world.push(0, &[seed]), world.push(3, &[seed])];
        for round in 0..10 {
            let began = world.clock.elapsed();
            for ticket in [world.push(1, &[seed, round]), world.push(2, &[seed, round])] {
                assert!(world.told(&ticket).await.is_ok(), "a shard that is there");
            }
            assert_eq!(world.clock.elapsed(), began, "it waits for nothing");
            assert_eq!(world.stored(1), Some(vec![seed, round]));
            world.clock.sleep(Duration::from_millis(50)).await;
        }
        let later = world.push(0, &[seed, 99]);
        world.store.set_away([]);
        for ticket in away.iter().chain([&later]) {
            assert!(world.told(ticket).await.is_ok(), "once it is there again, all is written");
        }
        assert_eq!((world.stored(0), world.stored(3)), (Some(vec![seed, 99]), Some(vec![seed])));
        // What was late changes nothing more.
        world.clock.sleep(Duration::from_secs(5)).await;
        assert_eq!((world.stored(0), world.stored(3)), (Some(vec![seed, 99]), Some(vec![seed])));
    }
    assert_eq!(world.depth(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_not_answered_holds_up_its_own_shards_after_a_moment() {
    let world = World::spread().await;
    world.store.fail_next(Method::Commit, Fault::HangAfter);
    let hanging = world.push(0, b"a");
    tokio::task::yield_now().await;
    let behind = world.push(0, b"b");
    let beside = world.push(1, b"a");
    let limit = STORE_TIMEOUT / lane::PATIENCE + Duration::from_millis(1);
    assert!(matches!(world.told_within(&beside, limit).await, Some(Ok(()))));
    assert!(world.told_within(&behind, limit).await.is_none(), "the order of a shard is kept");
    assert!(world.told(&hanging).await.is_ok() && world.told(&behind).await.is_ok());
    assert_eq!((world.stored(0), world.depth()), (Some(b"b".to_vec()), (0, 0)));
}

#[tokio::test(start_paused = true)]
async fn each_write_is_waited_for_as_long_whatever_was_written_before_it() {
    let world = World::spread().await;
    let moment = STORE_TIMEOUT / lane::PATIENCE;
    assert!(world.told(&world.push(0, b"a")).await.is_ok());
    world.clock.sleep(moment / 2).await;
    world.store.fail_next(Method::Commit, Fault::HangAfter);
    let hanging = world.push(0, b"b");
    tokio::task::yield_now().await;
    let beside = world.push(1, b"a");
    // The timer of the first goes off meanwhile.
    let few = Duration::from_millis(2);
    assert!(world.told_within(&beside, moment - few).await.is_none());
    assert!(matches!(world.told_within(&beside, 2 * few).await, Some(Ok(()))));
    assert!(world.told(&hanging).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn shards_of_a_call_that_was_not_answered_are_asked_after_each_by_itself() {
    let world = World::spread().await;
    // One write to all four shards; nothing is heard of it, and after that one of them hangs for good.
    world.store.fail_next(Method::Commit, Fault::FailAfter);
    let tickets: Vec<_> = (0..SHARDS).map(|shard| world.push(shard, b"a")).collect();
    world.store.fail_at(world.store.begun() + 1, Fault::Hang);
    let mut told = 0;
    for ticket in &tickets {
        told += u32::from(matches!(world.told_within(ticket, STORE_TIMEOUT / 2).await, Some(Ok(()))));
    }
    assert_eq!(told, SHARDS - 1);
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_lost_while_its_outcome_is_unknown_is_told_so_and_left_out() {
    for world in [World::spread().await, World::of_lane().await] {
        world.store.set_chance(Method::Commit, Fault::FailAfter, 1.0);
        let tickets = [world.push(0, b"a"), world.push(1, b"a")];
        world.clock.sleep(Duration::from_secs(1)).await;
        world.shards.lose(ShardId(0), Epoch(1));
        let told = world.told_within(&tickets[0], Duration::from_secs(3)).await;
        assert!(matches!(told, Some(Err(Failure::Unknown))), "{told:?}");
        let begun = world.store.log().len();
        world.clock.sleep(Duration::from_secs(3)).await;
        let log = world.store.log();
        assert!(log.len() > begun && log[begun..].iter().all(|call| call.size == 1), "{:?}", &log[begun..]);
        world.store.heal();
        assert!(world.told_within(&tickets[1], Duration::from_secs(3)).await.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_holds_up_the_lane_where_the_lane_has_the_number() {
    let world = World::of_lane().await;
    world.store.set_chance(Method::Commit, Fault::FailAfter, 1.0);
    let unknown = world.push(0, b"a");
    tokio::task::yield_now().await;
    let behind = world.push(1, b"a");
    assert!(world.told_within(&behind, Duration::from_secs(3)).await.is_none());
    world.store.heal();
    assert!(world.told(&unknown).await.is_ok() && world.told(&behind).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_lane_is_full_by_commits_and_by_bytes_and_what_is_written_makes_room() {
    let world = World::of_lane().await;
    world.store.fail_next(Method::Commit, Fault::HangAfter);
    let mut tickets = vec![world.push(0, &[0; 4_000])];
    tokio::task::yield_now().await;
    tickets.push(world.push(1, &[0; 4_000]));
    assert!(!world.committer.is_full(ShardId(0)));
    tickets.push(world.push(2, &[0; 4_000]));
    assert!(world.committer.is_full(ShardId(0)), "12,000 bytes are queued: {:?}", world.depth());
    world.store.release_hanging();
    for ticket in &tickets {
        assert!(world.told(ticket).await.is_ok());
    }
    assert_eq!(world.depth(), (0, 0));
    world.store.fail_next(Method::Commit, Fault::HangAfter);
    let tickets: Vec<_> = (0..100).map(|n| world.push(n % SHARDS, b"")).collect();
    assert!(world.committer.is_full(ShardId(0)), "100 commits are queued: {:?}", world.depth());
    world.store.release_hanging();
    for ticket in &tickets {
        assert!(world.told(ticket).await.is_ok());
    }
    assert_eq!(world.depth(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn commits_that_are_withdrawn_late_are_counted_no_more() {
    for world in [World::spread().await, World::of_lane().await] {
        // The first is never answered, the others are never sent.
        world.store.set_chance(Method::Commit, Fault::HangAfter, 1.0);
        let first = world.push(0, b"a");
        tokio::task::yield_now().await;
        let waiting = [world.push(0, b"b"), world.push(0, b"c")];
        world.clock.sleep(COMMIT_TIMEOUT * 3).await;
        for ticket in &waiting {
            assert!(matches!(world.told(ticket).await, Err(Failure::Store(_))));
        }
        assert_eq!(world.depth().0, 1, "the one whose outcome is unknown");
        world.store.heal();
        world.store.release_hanging();
        world.clock.sleep(STORE_TIMEOUT * 2).await;
        assert!(first.is_settled());
        assert_eq!(world.depth(), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn commits_of_a_store_that_stays_away_are_counted_no_more() {
    for world in [World::spread().await, World::of_lane().await] {
        world.store.set_down(true);
        let tickets = [world.push(0, b"a"), world.push(1, b"a")];
        world.clock.sleep(COMMIT_TIMEOUT * 2).await;
        for ticket in &tickets {
            assert!(matches!(world.told(ticket).await, Err(Failure::Store(_))), "surely not written");
        }
        assert_eq!(world.depth(), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn commits_that_are_fenced_are_counted_no_more() {
    let world = World::spread().await;
    // Lost before it is sent, and found lost by the store.
    world.shards.lose(ShardId(0), Epoch(1));
    world.memory.release(ME, &[(ShardId(1), None)]).await.unwrap();
    let tickets = [world.push(0, b"a"), world.push(1, b"a")];
    for ticket in &tickets {
        assert!(matches!(world.told(ticket).await, Err(Failure::Fenced)));
    }
    assert_eq!((world.depth(), world.shards.epoch(ShardId(1))), ((0, 0), None));
}

#[tokio::test(start_paused = true)]
async fn commits_behind_a_failed_one_are_counted_no_more() {
    let world = World::spread().await;
    world.memory.release(ME, &[(ShardId(1), None)]).await.unwrap();
    world.store.fail_next(Method::Commit, Fault::SlowAnswer(Duration::from_millis(100)));
    let first = world.push(1, b"a");
    tokio::task::yield_now().await;
    let behind = world.push(1, b"b");
    assert!(world.told(&first).await.is_err() && world.told(&behind).await.is_err());
    world.clock.sleep(Duration::from_secs(1)).await;
    assert_eq!(world.depth(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn commits_of_a_lane_that_is_closed_are_counted_no_more() {
    for world in [World::spread().await, World::of_lane().await] {
        world.store.set_chance(Method::Commit, Fault::Hang, 1.0);
        let sent = world.push(0, b"a");
        // Held up beside the lane, where it goes on.
        world.clock.sleep(Duration::from_secs(1)).await;
        let waiting = [world.push(0, b"b"), world.push(0, b"c")];
        world.clock.sleep(Duration::from_millis(100)).await;
        world.committer.close();
        for ticket in [&waiting[0], &waiting[1], &world.push(2, b"never")] {
            assert!(world.told(ticket).await.is_err());
        }
        assert_eq!(world.depth().0, 1, "the one that was sent");
        world.task.abort();
        assert!(matches!(world.told(&sent).await, Err(Failure::Unknown)));
        assert_eq!(world.depth(), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_has_no_more_bytes_than_it_may_however_many_commits_wait() {
    let world = World::of_lane().await;
    world.store.fail_next(Method::Commit, Fault::HangAfter);
    let first = world.push(0, b"a");
    tokio::task::yield_now().await;
    let large = vec![0; MAX_WRITE_BYTES / 2];
    let tickets: Vec<_> = (0..SHARDS).map(|shard| world.push(shard, &large)).collect();
    world.store.release_hanging();
    for ticket in tickets.iter().chain([&first]) {
        assert!(world.told(ticket).await.is_ok());
    }
    assert_eq!(world.store.calls(Method::Commit), 1 + u64::from(SHARDS), "no two fit into one");
}

#[tokio::test(start_paused = true)]
async fn who_was_just_answered_is_in_the_next_write_with_what_has_waited() {
    let world = Arc::new(World::of_lane().await);
    world.store.set_chance(Method::Commit, Fault::Delay(Duration::from_millis(2)), 1.0);
    let ask = |shard: u32| {
        let world = world.clone();
        tokio::spawn(async move {
            if shard == 3 {
                // While the first write of the others is under way.
                world.clock.sleep(Duration::from_millis(1)).await;
            }
            for round in 0..10 {
                let ticket = world.push(shard, &[round]);
                assert!(world.told(&ticket).await.is_ok());
            }
        })
    };
    for caller in (0..SHARDS).map(ask).collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    let log = world.store.log();
    let sizes: Vec<usize> = log.iter().filter(|call| call.method == Method::Commit).map(|call| call.size).collect();
    assert_eq!(sizes, [3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 1]);
}
