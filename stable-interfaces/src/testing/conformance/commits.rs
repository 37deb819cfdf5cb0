//! Writes of `commit`, and its refusals: fencing by epoch, repeats by sequence, atomic batches.

use bytes::Bytes;

use super::given::*;
use crate::store::{DeadRow, Op, Sequence, ShardId, StoreError};

pub(super) async fn a_commit_is_seen_at_once(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    for n in 0..20 {
        let row = alarm("i", &format!("a-{n:02}"), 10);
        owner.commit(0, vec![put("i", "n", &n.to_string()), Op::PutAlarm(row.clone())]).await;
        assert_eq!(value(&store, 0, "i", "n").await, Some(n.to_string()));
        assert_eq!(alarms(&store, 0).await.last(), Some(&row));
    }
}

pub(super) async fn a_fenced_batch_leaves_nothing_and_the_others_land(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0, 2, 3]).await;
    claim(&store, &start(2, "host-b", &[1])).await;
    let ops = || vec![put("i", "k", "v"), put("i", "l", "w"), Op::PutAlarm(alarm("i", "a", 10))];
    let write = owner.next((0..4).map(|shard| owner.batch(shard, ops())).collect());
    let answers = commit(&store, &write).await;
    for shard in [0, 2, 3] {
        let answer = &answers[shard as usize];
        assert!(answer.is_ok(), "the batch of shard {shard} is written, whatever happens to another, not {answer:?}");
        assert_eq!(storage(&store, shard, "i").await.len(), 2, "shard {shard}");
        assert_eq!(alarms(&store, shard).await.len(), 1, "shard {shard}");
    }
    assert_fenced(&answers[1], 1, 0, 1);
    assert_eq!(storage(&store, 1, "i").await, []);
    assert_eq!(alarms(&store, 1).await, []);
}

pub(super) async fn an_epoch_of_the_past_is_fenced(store: AnyStore) {
    let mut first = Owner::start(&store, 1, "host-a", &[0]).await;
    first.commit(0, vec![put("i", "k", "first")]).await;
    store.release(first.incarnation, &[(ShardId(0), None)]).await.expect("a release is answered");
    // The same incarnation takes it back: only the epoch tells the two ownerships apart.
    claim(&store, &running(1, "host-a", &[0])).await;
    assert_fenced(&first.try_commit(0, vec![put("i", "k", "late")]).await, 0, 1, 2);
    assert_eq!(value(&store, 0, "i", "k").await.as_deref(), Some("first"));
}

pub(super) async fn an_epoch_of_the_future_is_fenced(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    owner.epochs.insert(0, crate::store::Epoch(2));
    assert_fenced(&owner.try_commit(0, vec![put("i", "k", "v")]).await, 0, 2, 1);
    assert_eq!(storage(&store, 0, "i").await, []);
}

pub(super) async fn another_incarnation_is_fenced_under_the_right_epoch(store: AnyStore) {
    Owner::start(&store, 1, "host-a", &[0]).await;
    let mut stranger = Owner::start(&store, 2, "host-b", &[1]).await;
    stranger.epochs.insert(0, crate::store::Epoch(1));
    assert_fenced(&stranger.try_commit(0, vec![put("i", "k", "v")]).await, 0, 1, 1);
    assert_eq!(storage(&store, 0, "i").await, []);
}

pub(super) async fn a_shard_never_claimed_takes_no_write(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    for epoch in [0, 1] {
        owner.epochs.insert(5, crate::store::Epoch(epoch));
        assert_fenced(&owner.try_commit(5, vec![put("i", "k", "v")]).await, 5, epoch, 0);
    }
    assert_eq!(storage(&store, 5, "i").await, []);
    assert_eq!(grants(&claim(&store, &start(2, "host-b", &[5])).await), [(5, 1, true)]);
}

pub(super) async fn an_owner_whose_lease_ran_out_writes_until_another_claims(store: AnyStore) {
    let mut first = Owner::claim(&store, &with_lease(TINY, start(1, "host-a", &[0, 1]))).await;
    // Once the other host has got shard 0, the lease has surely run out.
    claim_when_free(&store, &running(2, "host-b", &[0])).await;
    first.commit(1, vec![put("i", "k", "v")]).await;
    assert_fenced(&first.try_commit(0, vec![put("i", "k", "v")]).await, 0, 1, 2);
    claim(&store, &running(2, "host-b", &[1])).await;
    assert_fenced(&first.try_commit(1, vec![put("i", "k", "late")]).await, 1, 1, 2);
    assert_eq!(value(&store, 1, "i", "k").await.as_deref(), Some("v"));
}

pub(super) async fn a_repeated_write_is_done_without_being_applied(store: AnyStore) {
    let owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let first = owner.write(0, 1, vec![owner.batch(0, vec![put("i", "k", "first")])]);
    let second = owner.write(1, 1, vec![owner.batch(0, vec![put("i", "k", "second")])]);
    one(commit(&store, &first).await).expect("the write is done");
    one(commit(&store, &second).await).expect("the write of another lane is done");
    for _ in 0..3 {
        one(commit(&store, &first).await).expect("a repeat is answered as done");
        assert_eq!(value(&store, 0, "i", "k").await.as_deref(), Some("second"), "a repeat is not applied again");
    }
}

pub(super) async fn a_repeat_with_other_contents_changes_nothing(store: AnyStore) {
    let owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let row = alarm("i", "a", 10);
    let first = owner.write(0, 7, vec![owner.batch(0, vec![put("i", "k", "first"), Op::PutAlarm(row.clone())])]);
    one(commit(&store, &first).await).expect("the write is done");
    let ops = vec![put("i", "k", "other"), put("i", "new", "x"), remove_alarm(&row, row.revision)];
    let other = owner.write(0, 7, vec![owner.batch(0, ops)]);
    one(commit(&store, &other).await).expect("an equal sequence number is answered as done");
    assert_eq!(storage(&store, 0, "i").await, [("k".into(), "first".into())]);
    assert_eq!(alarms(&store, 0).await, [row]);
}

pub(super) async fn a_repeat_of_a_part_of_a_write_is_done_without_being_applied(store: AnyStore) {
    let owner = Owner::start(&store, 1, "host-a", &[0, 1]).await;
    let batches: Vec<_> = [0, 1].map(|shard| owner.batch(shard, vec![put("i", "k", "first")])).into();
    assert!(commit(&store, &owner.write(0, 1, batches.clone())).await.iter().all(Result::is_ok));
    let other_lane = [0, 1].map(|shard| owner.batch(shard, vec![put("i", "k", "second")])).into();
    assert!(commit(&store, &owner.write(1, 1, other_lane)).await.iter().all(Result::is_ok));
    for batch in batches {
        let shard = batch.shard.0;
        one(commit(&store, &owner.write(0, 1, vec![batch])).await).expect("a repeat is answered as done");
        let found = value(&store, shard, "i", "k").await;
        assert_eq!(found.as_deref(), Some("second"), "shard {shard}: a repeat is not applied again");
    }
}

pub(super) async fn a_number_counts_for_its_lane_or_for_its_shard_as_the_store_says(store: AnyStore) {
    let wanted = start(1, "host-a", &[0, 1]);
    let sequence = claim(&store, &wanted).await.sequence;
    let owner = Owner::claim(&store, &wanted).await;
    let write = |seq, shard, value| owner.write(0, seq, vec![owner.batch(shard, vec![put("i", "k", value)])]);
    one(commit(&store, &write(5, 0, "first")).await).expect("the write is done");
    let older = said(store.commit(&write(3, 1, "older")).await);
    let found = value(&store, 1, "i", "k").await;
    match sequence {
        Sequence::OfLane => {
            assert!(matches!(older, Err(StoreError::Stale { newest: 5, .. })), "one number for the lane: {older:?}");
            assert_eq!(found, None);
        }
        Sequence::OfShard => {
            assert!(older.is_ok(), "each shard has its own number: {older:?}");
            assert_eq!(found.as_deref(), Some("older"));
            one(commit(&store, &write(3, 1, "again")).await).expect("a repeat is answered as done");
            let stale = said(store.commit(&write(2, 1, "stale")).await);
            assert!(matches!(stale, Err(StoreError::Stale { newest: 3, .. })), "{stale:?}");
            one(commit(&store, &write(4, 1, "next")).await).expect("the write is done");
            assert_eq!(value(&store, 1, "i", "k").await.as_deref(), Some("next"));
        }
    }
    assert_eq!(value(&store, 0, "i", "k").await.as_deref(), Some("first"));
    let again = claim(&store, &wanted).await.sequence;
    assert_eq!(again, sequence, "a store does not change its mind");
}

pub(super) async fn a_repeat_after_the_shard_was_lost_is_fenced(store: AnyStore) {
    let mut first = Owner::start(&store, 1, "host-a", &[0]).await;
    let write = first.next(vec![first.batch(0, vec![put("i", "k", "first")])]);
    one(commit(&store, &write).await).expect("the write is done");
    store.release(first.incarnation, &[(ShardId(0), None)]).await.expect("a release is answered");
    let mut second = Owner::start(&store, 2, "host-b", &[0]).await;
    second.commit(0, vec![put("i", "k", "second")]).await;
    assert_fenced(&one(commit(&store, &write).await), 0, 1, 2);
    assert_eq!(value(&store, 0, "i", "k").await.as_deref(), Some("second"));
}

pub(super) async fn a_repeat_answers_for_each_batch(store: AnyStore) {
    let mut first = Owner::claim(&store, &with_lease(TINY, start(1, "host-a", &[0, 1]))).await;
    let batches = vec![first.batch(0, vec![put("i", "k", "v")]), first.batch(1, vec![put("i", "k", "v")])];
    let write = first.next(batches);
    assert!(commit(&store, &write).await.iter().all(Result::is_ok), "both batches are written");
    claim_when_free(&store, &running(2, "host-b", &[1])).await;
    let answers = commit(&store, &write).await;
    assert!(answers[0].is_ok(), "shard 0 still has its epoch, so its batch is done, not {:?}", answers[0]);
    assert_fenced(&answers[1], 1, 1, 2);
}

pub(super) async fn an_older_write_is_stale_and_changes_nothing(store: AnyStore) {
    let owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let write = |seq, value| owner.write(3, seq, vec![owner.batch(0, vec![put("i", "k", value)])]);
    for (seq, value) in [(1, "first"), (2, "second"), (3, "third")] {
        one(commit(&store, &write(seq, value)).await).expect("the write is done");
    }
    for (seq, value) in [(1, "first"), (2, "second"), (2, "other")] {
        match said(store.commit(&write(seq, value)).await) {
            Err(StoreError::Stale { lane, seq: asked, newest }) => assert_eq!((lane.0, asked, newest), (3, seq, 3)),
            other => unexpected("an older write is stale", &other),
        }
        assert_eq!(value_of(&store).await, "third");
    }
    one(commit(&store, &write(4, "fourth")).await).expect("a stale write blocks nothing");
    assert_eq!(value_of(&store).await, "fourth");
}

async fn value_of(store: &AnyStore) -> String {
    value(store, 0, "i", "k").await.unwrap_or_default()
}

pub(super) async fn lanes_count_separately(store: AnyStore) {
    let owner = Owner::start(&store, 1, "host-a", &[0]).await;
    for (lane, seq) in [(0, 100), (1, 1), (7, 5), (u16::MAX, 1), (1, 2), (7, 6), (0, 101)] {
        let value = format!("{lane}-{seq}");
        let write = owner.write(lane, seq, vec![owner.batch(0, vec![put("i", "k", &value)])]);
        one(commit(&store, &write).await).expect("the write is the newest of its lane");
        assert_eq!(value_of(&store).await, value);
    }
    match said(store.commit(&owner.write(7, 5, vec![owner.batch(0, vec![put("i", "k", "late")])])).await) {
        Err(StoreError::Stale { newest: 6, .. }) => {}
        other => unexpected("an older write of lane 7 is stale", &other),
    }
}

pub(super) async fn sequences_may_skip_and_are_compared_as_whole_numbers(store: AnyStore) {
    let owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let write = |seq: u64| owner.write(0, seq, vec![owner.batch(0, vec![put("i", "k", &seq.to_string())])]);
    // 9 and 10 differ as text, 2^53 and 2^53 + 1 are one and the same as floating point.
    let seqs = [9, 10, 99, 100, (1 << 53) - 1, 1 << 53, (1 << 53) + 1, (1 << 53) + 2];
    for seq in seqs {
        one(commit(&store, &write(seq)).await).expect("a greater number is a new write");
        assert_eq!(value_of(&store).await, seq.to_string());
    }
    for seq in &seqs[..seqs.len() - 1] {
        let answer = said(store.commit(&write(*seq)).await);
        assert!(
            matches!(answer, Err(StoreError::Stale { .. })),
            "{seq} is stale after {}, not {answer:?}",
            (1_u64 << 53) + 2
        );
    }
}

pub(super) async fn a_new_incarnation_counts_from_one_again(store: AnyStore) {
    let first = Owner::start(&store, 1, "host-a", &[0]).await;
    let write = first.write(0, 50, vec![first.batch(0, vec![put("i", "k", "first")])]);
    one(commit(&store, &write).await).expect("the write is done");
    let mut second = Owner::start(&store, 2, "host-a", &[0]).await;
    for value in ["second", "third"] {
        second.commit(0, vec![put("i", "k", value)]).await;
        assert_eq!(value_of(&store).await, value);
    }
}

pub(super) async fn a_late_write_after_a_newer_claim_changes_nothing(store: AnyStore) {
    let mut first = Owner::start(&store, 1, "host-a", &[0]).await;
    let row = alarm("i", "a", 10);
    first.commit(0, vec![put("i", "k", "first"), Op::PutAlarm(row.clone())]).await;
    let ops = vec![put("i", "k", "late"), put("i", "l", "late"), remove_alarm(&row, row.revision)];
    let late = first.next(vec![first.batch(0, ops)]);
    let mut second = Owner::start(&store, 2, "host-a", &[0]).await;
    for _ in 0..2 {
        assert_fenced(&one(commit(&store, &late).await), 0, 1, 2);
        assert_eq!(storage(&store, 0, "i").await, [("k".into(), "first".into())]);
    }
    second.commit(0, vec![put("i", "k", "second")]).await;
    assert_fenced(&one(commit(&store, &late).await), 0, 1, 2);
    assert_eq!(storage(&store, 0, "i").await, [("k".into(), "second".into())]);
    assert_eq!(alarms(&store, 0).await, [row]);
}

pub(super) async fn a_batch_that_cannot_be_stored_leaves_nothing_of_itself(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0, 1]).await;
    // NUL is excluded by the library; a store may hold it or refuse it, but not hold half.
    let bad =
        vec![put("i", "a", "v"), put("i", "nul\0key", "v"), put("i", "z", "v"), Op::PutAlarm(alarm("i", "a", 10))];
    let good = || vec![put("i", "k", "v")];
    let write = owner.next(vec![owner.batch(0, bad), owner.batch(1, good())]);
    match store.commit(&write).await {
        Ok(answers) => {
            assert!(answers[1].is_ok(), "a batch is not affected by another, not {:?}", answers[1]);
            assert_eq!(storage(&store, 1, "i").await.len(), 1);
            let whole = match &answers[0] {
                Ok(()) => (3, 1),
                Err(StoreError::Rejected(_)) => (0, 0),
                other => unexpected("a batch is stored or rejected", other),
            };
            assert_eq!((storage(&store, 0, "i").await.len(), alarms(&store, 0).await.len()), whole, "all or nothing");
        }
        Err(StoreError::Rejected(_)) => {
            assert_eq!((storage(&store, 0, "i").await, storage(&store, 1, "i").await), (vec![], vec![]));
            assert_eq!(alarms(&store, 0).await, []);
            let alone = owner.write(write.lane.0, write.seq, vec![owner.batch(1, good())]);
            one(commit(&store, &alone).await).expect("a write rejected as a whole did not take its number");
            assert_eq!(storage(&store, 1, "i").await.len(), 1);
        }
        other => unexpected("a write is stored or rejected", &other),
    }
}

pub(super) async fn a_thousand_operations_land_in_one_batch(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let key = |n: usize| format!("key-{n:04}");
    let ops = (0..500).flat_map(|n| [put("i", &key(n), "v"), Op::PutAlarm(alarm("i", &key(n), 10))]).collect();
    owner.commit(0, ops).await;
    let keys: Vec<_> = storage(&store, 0, "i").await.into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, (0..500).map(key).collect::<Vec<_>>());
    assert_eq!(alarms(&store, 0).await.iter().map(|row| row.id.to_string()).collect::<Vec<_>>(), keys);
    let remove = |n: usize| [delete("i", &key(n)), remove_alarm(&alarm("i", &key(n), 10), revision(1, 1))];
    owner.commit(0, (0..500).flat_map(remove).collect()).await;
    assert_eq!((storage(&store, 0, "i").await, alarms(&store, 0).await), (vec![], vec![]));
}

pub(super) async fn four_mebibytes_land_in_one_batch(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let large = |n: u8| Bytes::from(vec![n; crate::store::MAX_VALUE_BYTES]);
    let ops = (0..16).map(|n| put_of(name("i"), &format!("{n:02}"), large(n))).collect();
    owner.commit(0, ops).await;
    let rows = read_storage(&store, 0, name("i"), "", None, 100).await;
    assert_eq!(rows.len(), 16);
    for (n, (_, value)) in (0..16).zip(&rows) {
        assert!(*value == large(n), "value {n} came back with {} bytes", value.len());
    }
}

pub(super) async fn one_write_may_span_many_shards(store: AnyStore) {
    let shards: Vec<u32> = (0..64).map(|n| n * 16).collect();
    let mut owner = Owner::start(&store, 1, "host-a", &shards).await;
    let batches = shards.iter().map(|&shard| owner.batch(shard, vec![put("i", "k", &shard.to_string())])).collect();
    let write = owner.next(batches);
    for answer in commit(&store, &write).await {
        answer.expect("every batch is written");
    }
    for shard in shards {
        assert_eq!(value(&store, shard, "i", "k").await, Some(shard.to_string()));
    }
}

pub(super) async fn all_kinds_of_operations_land_together(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    for id in ["m1", "m2"] {
        post(&store, message(0, "i", id, "body")).await;
    }
    let (old, new) = (alarm("i", "old", 10), alarm("i", "new", 20));
    let old_letter = dead(5, DeadRow::Alarm(alarm("i", "older", 1)));
    owner.commit(0, vec![Op::PutAlarm(old.clone()), put("i", "old", "v"), Op::PutDead(old_letter.clone())]).await;
    let messages = inbox(&store, 0).await;
    let retried = crate::store::InboxRow { attempts: failed(1), ..messages[1].clone() };
    let letter = dead(6, DeadRow::Message(messages[0].clone()));
    let ops = vec![
        Op::PutAlarm(new.clone()),
        remove_alarm(&old, old.revision),
        Op::PutMessage(retried.clone()),
        Op::RemoveMessage(messages[0].key()),
        Op::PutDead(letter.clone()),
        Op::RemoveDead(old_letter.key()),
        put("i", "new", "v"),
        delete("i", "old"),
    ];
    owner.commit(0, ops).await;
    assert_eq!(alarms(&store, 0).await, [new]);
    assert_eq!(inbox(&store, 0).await, [retried]);
    assert_eq!(dead_letters(&store, 0).await, [letter]);
    assert_eq!(storage(&store, 0, "i").await, [("new".into(), "v".into())]);
}
