//! A store of which a part is away: what is on the rest goes on, and nothing is called lost that merely did not answer.
//!
//! First in memory, on a paused clock; then on a Redis cluster whose servers stop answering, and die, in real time.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "real servers take real time")]

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use alarm_backends::RedisStore;
use alarm_backends::testing::servers::{Redis, RedisCluster};
use parking_lot::Mutex;
use stable_interfaces::store::{Epoch, ShardId};
use stable_interfaces::testing::{Fault, Method};
use stable_interfaces::{
    Context, ContextError, Fleet, Handle, Health, Host, Interface, NewPost, RequestError, StableInterface,
};
use system_tests::{Site, World, count, get, in_time, life, now_or_never, put, spawn};

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(15);
const SHARDS: u32 = 32;

fn fleet() -> Fleet {
    Fleet::new(["only"], SHARDS).unwrap()
}

/// The shards of which a third is away.
fn a_third() -> impl Iterator<Item = ShardId> {
    (0..SHARDS).filter(|shard| shard.is_multiple_of(3)).map(ShardId)
}

/// So many IDs in the shards that are away, and in the others.
fn ids(fleet: &Fleet, many: usize) -> (Vec<String>, Vec<String>) {
    let all = || (0..10_000).map(|i| format!("id-{i}"));
    let is_away = |id: &String| fleet.shard_of(id).unwrap().0.is_multiple_of(3);
    (all().filter(is_away).take(many).collect(), all().filter(|id| !is_away(id)).take(many).collect())
}

async fn start(world: &World) -> Site {
    world.launch(world.member("only", &fleet()).lease(LEASE), |probes| probes).await
}

#[tokio::test(start_paused = true)]
async fn instances_on_the_rest_of_a_store_go_on_for_as_long_as_a_part_of_it_is_away() {
    in_time(async {
        let world = World::spread();
        let site = start(&world).await;
        let (away, there) = ids(&fleet(), 20);
        for id in away.iter().chain(&there) {
            site.probes.request(id, count("n")).await.unwrap();
        }
        world.store.set_away(a_third());
        // Nothing is read before it is written, so these get as far as the store.
        let waiting: Vec<_> = away.iter().map(|id| spawn(&site.probes, id, put("n", 5))).collect();
        // Many leases long.
        for round in 0..60 {
            for id in &there {
                let mut request = Box::pin(site.probes.request(id, count("n")));
                let answer = match now_or_never(&mut request).await {
                    Some(answer) => answer,
                    None => tokio::time::timeout(SECOND, request).await.expect("nothing holds it up"),
                };
                assert_eq!(answer.unwrap(), round + 2);
            }
            world.pass(2 * SECOND).await;
        }
        assert_eq!(site.host.health(), Health::Running);
        for request in waiting {
            let error = request.await.unwrap().unwrap_err();
            assert!(
                matches!(error, RequestError::Unknown(_) | RequestError::Store(_) | RequestError::Fenced),
                "{error}"
            );
        }
        world.store.set_away([]);
        world.pass(LEASE).await;
        for id in &away {
            let n = site.probes.request(id, get("n")).await.unwrap();
            assert!(n == Some(1) || n == Some(5), "{n:?}: what was unknown happened or did not");
        }
        assert!(site.host.is_ready(Duration::MAX));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_gave_up_what_is_away_does_not_name_itself_as_the_one_to_ask() {
    in_time(async {
        let world = World::spread();
        let site = start(&world).await;
        let (away, _) = ids(&fleet(), 1);
        site.probes.request(&away[0], count("n")).await.unwrap();
        world.store.set_away(a_third());
        world.pass(3 * LEASE).await;
        let error = site.probes.request(&away[0], get("n")).await.unwrap_err();
        assert!(matches!(error, RequestError::LeaseLost), "{error}");
        world.store.set_away([]);
        world.pass(2 * LEASE).await;
        assert_eq!(site.probes.request(&away[0], get("n")).await.unwrap(), Some(1));
    })
    .await;
}

/// The text of a log. Clones are handles to the same one.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn shards_that_are_given_up_together_are_one_line_of_the_log_that_says_how_many() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _logged = tracing::subscriber::set_default(subscriber);
    in_time(async {
        let world = World::spread();
        let site = start(&world).await;
        // Another test may have come to a line of the log just before there was a subscriber, and have noted that nobody listens.
        tracing::callsite::rebuild_interest_cache();
        world.store.set_away(a_third());
        world.pass(3 * LEASE).await;
        assert_eq!(site.host.shards().len(), 21);
    })
    .await;
    let text = String::from_utf8(log.0.lock().clone()).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("given up")).collect();
    let [line] = &lines[..] else { panic!("{lines:#?}") };
    assert!(line.contains("shards=11") && line.contains("first=0"), "{line}");
}

#[tokio::test(start_paused = true)]
async fn alarms_on_the_rest_of_a_store_are_loaded_and_fire_while_a_part_of_it_is_away() {
    in_time(async {
        let world = World::spread();
        let site = start(&world).await;
        let (away, there) = ids(&fleet(), 40);
        for id in away.iter().chain(&there) {
            site.probes.set_alarm(id, "x", world.at(60_000), &()).await.unwrap();
        }
        site.host.drain(SECOND).await;
        drop(site);
        // It starts on a store that is there, and then has to load what is in its shards.
        let site = start(&world).await;
        world.store.set_away(a_third());
        world.pass(62 * SECOND).await;
        let fired = world.script.fired().iter().filter(|fired| there.contains(&fired.instance)).count();
        assert_eq!(fired, there.len(), "all that can be reached fires in time");
        world.store.set_away([]);
        world.pass(2 * LEASE).await;
        assert_eq!(world.script.fired().len(), there.len() + away.len());
        drop(site);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn shards_that_answer_again_are_asked_together_again() {
    in_time(async {
        let world = World::spread();
        let site = start(&world).await;
        // Asks for all shards at once, with one message in each.
        let loads = async |round: u32| {
            let before = world.store.calls(Method::Load);
            for shard in 0..SHARDS {
                let id = (0..).map(|i| format!("id-{i}")).find(|id| fleet().shard_of(id).unwrap() == ShardId(shard));
                site.probes.post(&id.unwrap(), NewPost::new("x").id(format!("{round}"))).await.unwrap();
            }
            world.pass(SECOND).await;
            world.store.calls(Method::Load) - before
        };
        world.pass(SECOND).await;
        let before = loads(1).await;
        world.store.set_chance(Method::Load, Fault::FailBefore, 1.0);
        let during = loads(2).await;
        world.store.heal();
        world.pass(LEASE).await;
        assert!(during > before, "each by itself: {during} calls and not {before}");
        assert_eq!(world.script.taken().len(), 2 * SHARDS as usize);
        let after = loads(3).await;
        assert!(after <= before, "{after} calls, and {before} before");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_ends_with_the_shard_that_is_given_up_and_not_at_the_next_renewal() {
    in_time(async {
        let world = World::spread();
        let site = start(&world).await;
        let (away, _) = ids(&fleet(), 5);
        for id in &away {
            site.probes.request(id, life()).await.unwrap();
        }
        world.store.set_away(a_third());
        while site.host.owns(&away[0]).unwrap() {
            world.pass(SECOND / 10).await;
        }
        assert!(away.iter().all(|id| !site.host.owns(id).unwrap() && !site.probes.is_running(id)));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_does_not_answer_is_kept_for_as_long_as_its_lease_lasts_and_claimed_again_under_a_greater_epoch() {
    in_time(async {
        let world = World::spread();
        let site = start(&world).await;
        let (away, there) = ids(&fleet(), 1);
        let (away, there) = (&away[0], &there[0]);
        let epochs = || {
            let of = |id: &String| world.dump().shards[&fleet().shard_of(id).unwrap()].epoch;
            (of(away), of(there))
        };
        site.probes.request(away, count("n")).await.unwrap();
        let lived = site.probes.request(away, life()).await.unwrap();
        // A renewal has just been answered.
        world.pass(LEASE / 3 + SECOND / 10).await;
        world.store.set_away(a_third());
        world.pass(LEASE * 3 / 5).await;
        assert!(site.host.owns(away).unwrap(), "not taken: unknown");
        assert_eq!(site.probes.request(away, life()).await.unwrap(), lived);
        // Its lease is nine tenths of what the store was asked for.
        world.pass(LEASE * 3 / 10).await;
        assert!(!site.host.owns(away).unwrap(), "it may be another's by now");
        assert!(site.probes.request(away, life()).await.is_err());
        assert!(site.host.owns(there).unwrap());
        for _ in 0..100 {
            world.pass(SECOND / 2).await;
            site.probes.request(there, count("n")).await.expect("the lease of the rest goes on without a gap");
        }
        assert_eq!(epochs(), (Epoch(1), Epoch(1)));
        world.store.set_away([]);
        world.pass(LEASE).await;
        assert!(site.host.owns(away).unwrap());
        assert_eq!(epochs(), (Epoch(2), Epoch(1)));
        assert_eq!(site.probes.request(away, get("n")).await.unwrap(), Some(1));
        assert!(site.probes.request(away, life()).await.unwrap() > lived, "what it had in memory may be out of date");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_answers_again_before_its_lease_is_over_is_never_given_up() {
    in_time(async {
        let world = World::spread();
        let site = start(&world).await;
        let (away, _) = ids(&fleet(), 1);
        let lived = site.probes.request(&away[0], life()).await.unwrap();
        for _ in 0..20 {
            world.store.set_away(a_third());
            world.pass(LEASE / 4).await;
            assert!(site.host.owns(&away[0]).unwrap());
            world.store.set_away([]);
            world.pass(LEASE * 3 / 5).await;
        }
        assert_eq!(site.probes.request(&away[0], life()).await.unwrap(), lived);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_a_host_gave_up_by_itself_it_claims_under_a_greater_epoch() {
    let world = World::in_memory();
    let site = start(&world).await;
    site.probes.request("a", count("n")).await.unwrap();
    let epoch = || world.dump().shards[&fleet().shard_of("a").unwrap()].epoch;
    assert_eq!(epoch(), Epoch(1));
    // An answer that no store should give: the host gives up its shards, and the store knows nothing of it.
    let store = world.store.clone();
    drop(site);
    let between = system_tests::Between::new(store).on_commit({
        let once = AtomicBool::new(false);
        move |write| {
            let refused = || Ok(write.batches.iter().map(|_| Err(stable_interfaces::StoreError::Replaced)).collect());
            (!once.swap(true, Ordering::SeqCst)).then(refused)
        }
    });
    let builder = world.equip(Host::builder("only", fleet()).store(between)).lease(LEASE);
    let site = world.launch(builder, |probes| probes).await;
    let before = epoch();
    assert!(site.probes.request("a", count("n")).await.is_err());
    world.pass(LEASE).await;
    assert_eq!(site.probes.request("a", count("n")).await.unwrap(), 2);
    assert_eq!(epoch(), Epoch(before.0 + 1), "nothing sent under the old one can land any more");
}

/// Counts in its storage.
struct Counter;

struct Add;

impl StableInterface for Counter {
    const NAME: &'static str = "counter";
    type Error = ContextError;
}

impl Handle<Add> for Counter {
    type Reply = i64;
    async fn handle(&mut self, cx: &mut Context, _: Add) -> Result<i64, ContextError> {
        let n = cx.get::<i64>("n").await?.unwrap_or(0) + 1;
        cx.put("n", &n)?;
        Ok(n)
    }
}

/// Answers that one client of a counter was given.
#[derive(Default)]
struct Told {
    acknowledged: AtomicI64,
    unknown: AtomicI64,
}

/// Adds to a counter, again and again.
async fn add(counters: Interface<Counter>, id: String, told: Arc<Told>, is_over: Arc<AtomicBool>) {
    while !is_over.load(Ordering::SeqCst) {
        match counters.request(&id, Add).await {
            Ok(_) => told.acknowledged.fetch_add(1, Ordering::SeqCst),
            Err(error) if error.may_have_happened() => told.unknown.fetch_add(1, Ordering::SeqCst),
            Err(_) => 0,
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until each of the clients has been acknowledged twice more.
async fn progress<'a>(clients: impl IntoIterator<Item = &'a Arc<Told>>, when: &str) {
    let acknowledged = |told: &Told| told.acknowledged.load(Ordering::SeqCst);
    let clients: Vec<_> = clients.into_iter().map(|told| (told, acknowledged(told) + 2)).collect();
    let began = Instant::now();
    while clients.iter().any(|(told, wanted)| acknowledged(told) < *wanted) {
        let stuck = clients.iter().filter(|(told, wanted)| acknowledged(told) < *wanted).count();
        assert!(began.elapsed() < Duration::from_secs(60), "{when}: {stuck} of {} stand still", clients.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_server_of_a_redis_cluster_stops_answering_and_dies_instances_on_the_others_go_on() {
    let cluster = RedisCluster::start();
    for node in cluster.nodes() {
        node.execute(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    let store = RedisStore::cluster(cluster.urls()).timeout(2 * SECOND).connect().await.unwrap();
    let mut builder = Host::builder("only", fleet())
        .store(store)
        .lease(9 * SECOND)
        .store_timeout(2 * SECOND)
        .commit_timeout(4 * SECOND);
    let counters = builder.interface(|_| Counter).register().unwrap();
    let host = builder.start().await.unwrap();

    let node_of = |shard: ShardId| {
        let key = format!("{{stable:{shard}}}:own");
        cluster.nodes().iter().position(|node| node.takes(&["EXISTS", &key])).unwrap()
    };
    let nodes: BTreeMap<ShardId, usize> = (0..SHARDS).map(|shard| (ShardId(shard), node_of(ShardId(shard)))).collect();
    let is_over = Arc::new(AtomicBool::new(false));
    let (mut clients, mut tasks) = (Vec::new(), Vec::new());
    for i in 0..60 {
        let id = format!("id-{i}");
        let (told, node) = (Arc::<Told>::default(), nodes[&fleet().shard_of(&id).unwrap()]);
        tasks.push(tokio::spawn(add(counters.clone(), id.clone(), told.clone(), is_over.clone())));
        clients.push((id, node, told));
    }
    let gone = nodes[&ShardId(0)];
    let server: &Redis = &cluster.nodes()[gone];
    let others = || clients.iter().filter(|(_, node, _)| *node != gone).map(|(_, _, told)| told);
    let all = || clients.iter().map(|(_, _, told)| told);
    progress(all(), "before").await;
    server.pause();
    for round in 0..4 {
        progress(others(), &format!("while it does not answer, round {round}")).await;
        tokio::time::sleep(3 * SECOND).await;
    }
    let owned = host.shards();
    assert!(nodes.iter().all(|(shard, node)| *node == gone || owned.contains(shard)), "nothing is lost on the others");
    assert!(nodes.iter().all(|(shard, node)| *node != gone || !owned.contains(shard)), "their leases are over");
    server.resume();
    progress(all(), "after it answers again").await;
    server.kill9();
    for round in 0..4 {
        progress(others(), &format!("while it is dead, round {round}")).await;
        tokio::time::sleep(SECOND).await;
    }
    server.restart();
    progress(all(), "after it was started again").await;
    is_over.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(host.health(), Health::Running);
    for (id, _, told) in &clients {
        let (acknowledged, mut unknown) =
            (told.acknowledged.load(Ordering::SeqCst), told.unknown.load(Ordering::SeqCst));
        // Its shard may be given up a last time, to be claimed again at once: its lease was not renewed while its server was away.
        let n = loop {
            match counters.request(id, Add).await {
                Ok(n) => break n - 1,
                Err(error) if error.may_have_happened() => unknown += 1,
                Err(error) => assert!(error.is_retryable(), "{id}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert!((acknowledged..=acknowledged + unknown).contains(&n), "{id}: {n} of {acknowledged} and {unknown}");
    }
    host.drain(SECOND).await;
}
