//! Names of hosts that are not seen any more: what is kept of them is forgotten after a week, and nothing that they might still do is let through.

use super::*;

/// A lease that is over before anybody looks.
const SHORT: Duration = Duration::from_millis(1);

/// Starts a life of a host on some shards, and returns those that it got when a short lease of it is over.
async fn enter(store: &RedisStore, life: u64, host: &str, shards: &[u32], lease: Duration) -> Vec<u32> {
    let claim = Claim { lease, ..claim_of(Incarnation(life), host, shards.to_vec(), ClaimKind::Start) };
    let claimed = store.claim(&claim).await.unwrap();
    if lease == SHORT {
        tokio::time::sleep(10 * SHORT).await;
    }
    claimed.granted.iter().map(|grant| grant.shard.0).collect()
}

/// Starts a life of a host that drains at once.
async fn come_and_go(store: &RedisStore, life: u64, host: &str, shards: &[u32]) {
    let presence = Presence { is_leaving: true, ..Presence::default() };
    let claim = Claim { presence, ..claim_of(Incarnation(life), host, shards.to_vec(), ClaimKind::Start) };
    assert_eq!(store.claim(&claim).await.unwrap().held, []);
    let released: Vec<_> = shards.iter().map(|shard| (ShardId(*shard), None)).collect();
    store.release(Incarnation(life), &released).await.unwrap();
}

/// Lets so many days pass for those who are gone.
fn pass_days(fleet: &Redis, days: i64) {
    let script = "
        local gone = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
        for i = 1, #gone, 2 do
            redis.call('ZADD', KEYS[1], gone[i + 1] - ARGV[1], gone[i])
        end
        local unnoted = redis.call('HGET', KEYS[2], 'members.unnoted')
        if unnoted then
            redis.call('HSET', KEYS[2], 'members.unnoted', string.format('%.0f', unnoted - ARGV[1]))
        end";
    let millis = (days * 86_400_000).to_string();
    fleet.execute(&["EVAL", script, "2", "{stable}:gone", "{stable}:fleet", &millis]);
}

fn lines(server: &Redis, command: &[&str]) -> Vec<String> {
    server.execute(command).lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// All that some servers keep of a name, members aside.
fn kept(servers: &[&Redis], name: &str) -> Vec<String> {
    let mut kept = Vec::new();
    for server in servers {
        for key in lines(server, &["KEYS", "*"]) {
            let fields = match server.execute(&["TYPE", &key]).as_str() {
                _ if key.ends_with("}:members") => Vec::new(),
                "hash" => lines(server, &["HGETALL", &key]),
                "zset" => lines(server, &["ZRANGE", &key, "0", "-1"]),
                _ => Vec::new(),
            };
            let is_of = |text: &String| text.split([':', ' ', '}']).any(|part| part == name);
            kept.extend(fields.into_iter().chain([key]).filter(is_of));
        }
    }
    kept
}

fn assert_replaced<T: std::fmt::Debug>(answer: Result<T, StoreError>) {
    assert!(matches!(answer, Err(StoreError::Replaced)), "{answer:?}");
}

async fn a_name_is_forgotten_after_a_week(store: &RedisStore, servers: &[&Redis]) {
    let fleet = *servers.iter().find(|server| server.takes(&["EXISTS", "{stable}:fleet"])).unwrap();
    let pods = ["pod-1", "pod-2", "pod-3"];
    for (life, pod) in (1..).zip(pods) {
        come_and_go(store, life, pod, &[0, 1, 2, 3]).await;
    }
    enter(store, 10, "stays", &[0, 1], LEASE).await;
    pass_days(fleet, 6);
    enter(store, 11, "looks", &[], LEASE).await;
    for pod in pods {
        assert!(kept(servers, pod).len() > 4, "{pod}: {:?}", kept(servers, pod));
    }
    pass_days(fleet, 2);
    // Whoever starts forgets, and what a running host says forgets nothing.
    store.renew(&Renewal::new(Incarnation(10), LEASE)).await.unwrap();
    assert!(!kept(servers, "pod-1").is_empty());
    enter(store, 12, "looks", &[], LEASE).await;
    for pod in pods {
        assert_eq!(kept(servers, pod), Vec::<String>::new(), "{pod}");
    }
    assert!(kept(servers, "stays").len() > 3 && kept(servers, "looks").len() > 1);
    assert_eq!(store.renew(&Renewal::new(Incarnation(10), LEASE)).await.unwrap().owned, [ShardId(0), ShardId(1)]);
    // A name may come again.
    come_and_go(store, 13, "pod-1", &[2, 3]).await;
}

#[tokio::test]
async fn what_is_kept_of_a_name_that_nobody_has_seen_for_a_week_is_forgotten() {
    let server = Redis::start();
    let store = quick(&server).connect().await.unwrap();
    a_name_is_forgotten_after_a_week(&store, &[&server]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cluster_keeps_of_a_name_that_nobody_has_seen_for_a_week_is_forgotten() {
    let cluster = RedisCluster::start();
    let store = RedisStore::cluster(cluster.urls()).prefix("stable").connect().await.unwrap();
    a_name_is_forgotten_after_a_week(&store, &cluster.nodes().iter().collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_whose_shards_cannot_all_be_asked_is_forgotten_when_they_can() {
    let cluster = cluster();
    let servers: Vec<&Redis> = cluster.nodes().iter().collect();
    let store = RedisStore::cluster(cluster.urls()).timeout(Duration::from_secs(4)).connect().await.unwrap();
    let fleet = node_of(&cluster, "{stable}:fleet");
    let elsewhere = |shard: &u32| !fleet.takes(&["EXISTS", &format!("{{stable:{shard}}}:own")]);
    let away = (0..100).find(elsewhere).unwrap();
    let node = node_of(&cluster, &format!("{{stable:{away}}}:own"));
    come_and_go(&store, 1, "pod", &[away]).await;
    pass_days(fleet, 8);
    node.kill9();
    enter(&store, 2, "looks", &[], LEASE).await;
    let others: Vec<&Redis> = servers.iter().copied().filter(|server| server.port() != node.port()).collect();
    assert!(kept(&others, "pod").len() > 2, "{:?}", kept(&others, "pod"));
    node.restart();
    let began = Instant::now();
    // Until it has met the others again it answers nothing.
    while !node.takes(&["EXISTS", &format!("{{stable:{away}}}:own")]) {
        assert!(began.elapsed() < PATIENCE, "the cluster is not whole again");
    }
    let mut life = 3;
    while !kept(&servers, "pod").is_empty() {
        assert!(began.elapsed() < PATIENCE, "{:?}", kept(&servers, "pod"));
        enter(&store, life, "looks", &[], LEASE).await;
        life += 1;
    }
}

#[tokio::test]
async fn a_host_that_comes_back_after_nine_days_takes_over_and_ends_what_its_last_life_still_owns() {
    let server = Redis::start();
    let (before, store) = (quick(&server).connect().await.unwrap(), quick(&server).connect().await.unwrap());
    assert_eq!(enter(&before, 1, "a", &[0, 1], SHORT).await, [0, 1]);
    for life in 2..4 {
        enter(&store, life, "looks", &[], LEASE).await;
        pass_days(&server, 9);
    }
    enter(&store, 4, "looks", &[], LEASE).await;
    let back = store.claim(&claim_of(Incarnation(5), "a", [1], ClaimKind::Start)).await.unwrap();
    assert_eq!(
        back.granted.iter().map(|grant| (grant.shard.0, grant.epoch.0, grant.clean)).collect::<Vec<_>>(),
        [(1, 2, false)]
    );
    for shard in 0..2 {
        let late = commit(&before, 1, shard, vec![put("k", "v")]).await;
        assert!(matches!(late, Err(StoreError::Fenced { .. })), "{late:?}");
    }
    assert_replaced(before.renew(&Renewal::new(ME, LEASE)).await);
    assert_eq!(store.renew(&Renewal::new(Incarnation(5), LEASE)).await.unwrap().owned, [ShardId(1)]);
}

#[tokio::test]
async fn a_life_that_was_paused_for_eight_days_is_told_that_it_is_replaced_and_can_do_nothing() {
    let server = Redis::start();
    let store = quick(&server).connect().await.unwrap();
    let mut paused = Vec::new();
    for life in 1..4 {
        let handle = quick(&server).connect().await.unwrap();
        // The third is the last life of its name.
        let host = if life < 3 { "a" } else { "b" };
        enter(&handle, life, host, &[u32::try_from(life).unwrap()], SHORT).await;
        paused.push((handle, life));
    }
    enter(&store, 4, "a", &[], SHORT).await;
    enter(&store, 5, "c", &[1, 2, 3], LEASE).await;
    pass_days(&server, 8);
    enter(&store, 6, "looks", &[], LEASE).await;
    assert_eq!([kept(&[&server], "a"), kept(&[&server], "b")], [vec![], vec![]] as [Vec<String>; 2]);
    server.execute(&["HDEL", "{stable:2}:own", "owner", "host", "until"]);
    for (handle, life) in &paused {
        let (shard, me) = (u32::try_from(*life).unwrap(), Incarnation(*life));
        let late = Write { incarnation: me, ..write(1, vec![batch(shard, vec![put("k", "v")])]) };
        let late = handle.commit(&late).await.unwrap().remove(0);
        assert!(matches!(late, Err(StoreError::Fenced { .. })), "{late:?}");
        let host = if *life < 3 { "a" } else { "b" };
        match life {
            1 => assert_replaced(handle.renew(&Renewal::new(me, LEASE)).await),
            2 => assert_replaced(handle.claim(&claim_of(me, host, [2], ClaimKind::Running)).await),
            _ => assert_replaced(handle.claim(&claim_of(me, host, [2], ClaimKind::Start)).await),
        }
    }
    assert_eq!([kept(&[&server], "a"), kept(&[&server], "b")], [vec![], vec![]] as [Vec<String>; 2]);
}

#[tokio::test]
async fn a_life_whose_record_is_gone_though_nobody_forgot_it_is_told_of_the_loss() {
    let server = Redis::start();
    let store = quick(&server).connect().await.unwrap();
    come_and_go(&store, 9, "pod", &[0]).await;
    pass_days(&server, 8);
    let handles = [quick(&server).connect().await.unwrap(), quick(&server).connect().await.unwrap()];
    for (handle, life) in handles.iter().zip(1..) {
        enter(handle, life, &format!("host-{life}"), &[], LEASE).await;
    }
    assert_eq!(kept(&[&server], "pod"), Vec::<String>::new());
    server.execute(&["DEL", "{stable}:lives"]);
    assert_lost(handles[0].renew(&Renewal::new(ME, LEASE)).await, "record of this host is gone");
    let claim = claim_of(Incarnation(2), "host-2", [0], ClaimKind::Running);
    assert_lost(handles[1].claim(&claim).await, "record of this host is gone");
}

#[tokio::test]
async fn a_life_whose_record_made_room_for_later_ones_is_told_that_it_is_replaced() {
    let server = Redis::start();
    let handles = [quick(&server).connect().await.unwrap(), quick(&server).connect().await.unwrap()];
    for (handle, life) in handles.iter().zip(1..) {
        enter(handle, life, "a", &[], LEASE).await;
    }
    let store = quick(&server).connect().await.unwrap();
    for life in 3..70 {
        enter(&store, life, "a", &[], LEASE).await;
    }
    assert_replaced(handles[0].renew(&Renewal::new(ME, LEASE)).await);
    assert_replaced(handles[1].claim(&claim_of(Incarnation(2), "a", [0], ClaimKind::Running)).await);
}

#[tokio::test]
async fn a_name_is_kept_for_as_long_as_it_is_a_members_or_owns_a_shard() {
    let server = Redis::start();
    let store = quick(&server).connect().await.unwrap();
    enter(&store, 1, "holder", &[0], SHORT).await;
    enter(&store, 2, "member", &[], LEASE).await;
    come_and_go(&store, 3, "pod", &[0, 1]).await;
    enter(&store, 4, "holder", &[1], SHORT).await;
    enter(&store, 5, "looks", &[], LEASE).await;
    // Paused for longer than its lease, and back.
    enter(&store, 6, "paused", &[2], SHORT).await;
    enter(&store, 7, "looks", &[2], LEASE).await;
    store.renew(&Renewal::new(Incarnation(6), LEASE)).await.unwrap();
    for life in 8..12 {
        pass_days(&server, 8);
        enter(&store, life, "looks", &[], LEASE).await;
        for name in ["holder", "member", "paused"] {
            assert!(kept(&[&server], name).contains(&format!("{{stable}}:past:{name}")), "{name}");
        }
    }
    assert_eq!(kept(&[&server], "pod"), Vec::<String>::new());
    enter(&store, 12, "next", &[1], LEASE).await;
    pass_days(&server, 8);
    enter(&store, 13, "looks", &[], LEASE).await;
    assert_eq!(kept(&[&server], "holder"), Vec::<String>::new());
}

#[tokio::test]
async fn a_host_that_was_gone_for_a_moment_is_kept_for_a_week_after_it_has_left() {
    let server = Redis::start();
    let store = quick(&server).connect().await.unwrap();
    enter(&store, 1, "looks", &[], LEASE).await;
    enter(&store, 2, "back", &[], SHORT).await;
    let look = async || store.renew(&Renewal::new(ME, LEASE)).await.unwrap().members.list.len();
    assert_eq!(look().await, 1);
    assert_eq!(store.renew(&Renewal::new(Incarnation(2), SHORT)).await.unwrap().members.list.len(), 2);
    pass_days(&server, 8);
    tokio::time::sleep(10 * SHORT).await;
    assert_eq!(look().await, 1);
    for life in 3..5 {
        enter(&store, life, "next", &[], LEASE).await;
        assert!(!kept(&[&server], "back").is_empty());
        pass_days(&server, 4);
    }
    enter(&store, 5, "next", &[], LEASE).await;
    assert_eq!(kept(&[&server], "back"), Vec::<String>::new());
}

/// Makes the store as the release before leaves it, which notes nobody as gone.
fn as_the_release_before(server: &Redis) {
    server.execute(&["DEL", "{stable}:gone"]);
    server.execute(&["HDEL", "{stable}:fleet", "members.noted", "members.unnoted", "dropped", "looked"]);
}

#[tokio::test]
async fn names_that_an_earlier_release_has_left_are_forgotten_some_at_a_time_a_week_after_they_are_first_seen() {
    let server = Redis::start();
    let store = quick(&server).connect().await.unwrap();
    for life in 0..250 {
        come_and_go(&store, 1000 + life, &format!("pod-{life}"), &[0]).await;
    }
    as_the_release_before(&server);
    let count = || server.execute(&["HLEN", "{stable}:started"]).parse::<usize>().unwrap();
    let mut starts = 0;
    let mut look = async || {
        starts += 1;
        enter(&store, starts, "looks", &[0], LEASE).await;
    };
    for _ in 0..6 {
        look().await;
    }
    assert_eq!(server.execute(&["ZCARD", "{stable}:gone"]), "250");
    pass_days(&server, 6);
    look().await;
    assert_eq!(count(), 251);
    pass_days(&server, 2);
    let mut before = count();
    while before > 1 {
        look().await;
        let now = count();
        assert!(now < before && now + 16 >= before, "{before} names, then {now}");
        before = now;
    }
    assert_eq!(lines(&server, &["HKEYS", "{stable}:started"]), ["looks"]);
    assert_eq!(lines(&server, &["KEYS", "{stable}:past:*"]), ["{stable}:past:looks"]);
    let of_shard = lines(&server, &["HKEYS", "{stable:0}:own"]);
    assert_eq!(of_shard.iter().filter(|field| field.starts_with("start:")).collect::<Vec<_>>(), ["start:looks"]);
}

#[tokio::test]
async fn beside_hosts_of_the_release_before_no_name_is_forgotten_that_may_have_been_one_of_theirs() {
    let server = Redis::start();
    let store = quick(&server).connect().await.unwrap();
    come_and_go(&store, 1, "pod", &[0]).await;
    pass_days(&server, 8);
    // A host of the release before has this name, and ends; another one takes it out.
    let gone = server.execute(&["ZSCORE", "{stable}:gone", "pod"]);
    come_and_go(&store, 2, "pod", &[0]).await;
    server.execute(&["ZADD", "{stable}:gone", &gone, "pod"]);
    server.execute(&["HINCRBY", "{stable}:fleet", "members.noted", "-1"]);
    for life in 3..5 {
        enter(&store, life, "looks", &[], LEASE).await;
        assert!(kept(&[&server], "pod").len() > 3);
        pass_days(&server, 6);
    }
    enter(&store, 5, "looks", &[], LEASE).await;
    assert_eq!(kept(&[&server], "pod"), Vec::<String>::new());
}
