//! Writes to several shards, which one server takes in as few scripts as they fit into.

use super::*;

/// The number of scripts that the server has run.
fn scripts(server: &Redis) -> u64 {
    let stats = server.execute(&["INFO", "commandstats"]);
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")?.split(',').next());
    calls.map_or(0, |calls| calls.parse().unwrap())
}

#[tokio::test]
async fn in_one_script_each_shard_is_checked_and_answered_for_itself() {
    let server = Redis::start();
    let store = patient(&server).connect().await.unwrap();
    start(&store, 0..6).await;
    store.release(ME, &[(ShardId(1), None)]).await.unwrap();
    server.execute(&["RENAME", "{stable:2}:own", "{stable:2}:elsewhere"]);
    server.execute(&["SET", "{stable:2}:own", "not ours"]);
    commit(&store, 5, 3, vec![put("later", "v")]).await.unwrap();
    commit(&store, 4, 4, vec![put("first", "v")]).await.unwrap();

    let before = scripts(&server);
    let all = write(4, (0..6).map(|shard| batch(shard, vec![put("k", "v"), Op::PutAlarm(alarm("a", 10))])).collect());
    let answers = store.commit(&all).await.unwrap();
    assert_eq!(scripts(&server) - before, 1);
    assert!(matches!(answers[1], Err(StoreError::Fenced { shard: ShardId(1), .. })), "{answers:?}");
    assert!(
        matches!(&answers[2], Err(StoreError::Rejected(error)) if error.to_string().contains("{stable:2}:own")),
        "{answers:?}"
    );
    assert!(matches!(answers[3], Err(StoreError::Stale { seq: 4, newest: 5, .. })), "{answers:?}");
    assert!([0, 4, 5].iter().all(|shard| answers[*shard].is_ok()), "{answers:?}");
    // A write that the shard has is done, and is not done again.
    for (shard, there) in [(0, "k"), (1, ""), (2, ""), (3, "later"), (4, "first"), (5, "k")] {
        assert_eq!(keys(&store, shard).await.into_iter().collect::<Vec<_>>().join(" "), there, "shard {shard}");
    }

    server.execute(&["RENAME", "{stable:2}:elsewhere", "{stable:2}:own"]);
    let rest = write(6, [2, 3].map(|shard| batch(shard, vec![put("k", "v")])).into());
    assert!(store.commit(&rest).await.unwrap().iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_write_of_more_than_a_thousand_operations_is_several_scripts() {
    let server = Redis::start();
    let store = patient(&server).connect().await.unwrap();
    start(&store, 0..5).await;
    // The first also gives the server the script.
    commit(&store, 1, 4, vec![put("k", "v")]).await.unwrap();
    let puts = |count: usize| (0..count).map(|n| put(&format!("{n:04}"), "v")).collect();
    let before = scripts(&server);
    // The last but one has more than fits on the stack of a script at once.
    let all = write(1, (0..).zip([600, 400, 5_000, 1]).map(|(shard, count)| batch(shard, puts(count))).collect());
    assert!(store.commit(&all).await.unwrap().iter().all(Result::is_ok));
    assert_eq!(scripts(&server) - before, 3);
    for (shard, count) in [(0, 600), (1, 400), (2, 5_000), (3, 1)] {
        assert_eq!(keys(&store, shard).await.len(), count, "shard {shard}");
    }
    let deletes = (0..5_000).map(|n| delete(&format!("{n:04}"))).collect();
    commit(&store, 2, 2, deletes).await.unwrap();
    assert_eq!(keys(&store, 2).await.len(), 0);
}

#[tokio::test]
async fn what_takes_memory_away_is_done_when_memory_is_full_beside_what_is_refused() {
    let server = Redis::start();
    let store = patient(&server).connect().await.unwrap();
    start(&store, 0..3).await;
    let all = write(1, (0..3).map(|shard| batch(shard, vec![put("k", "v")])).collect());
    assert!(store.commit(&all).await.unwrap().iter().all(Result::is_ok));
    server.execute(&["CONFIG", "SET", "maxmemory", "1"]);
    let ops = [vec![put("l", "v")], vec![delete("k")], vec![delete("k"), put("l", "v")]];
    let answers =
        store.commit(&write(2, (0..).zip(ops).map(|(shard, ops)| batch(shard, ops)).collect())).await.unwrap();
    assert!(matches!(&answers[..], [Err(StoreError::Full(_)), Ok(()), Err(StoreError::Full(_))]), "{answers:?}");
    for (shard, left) in [(0, 1), (1, 0), (2, 1)] {
        assert_eq!(keys(&store, shard).await.len(), left, "shard {shard}");
    }
}
