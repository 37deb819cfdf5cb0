//! Ownership: `claim`, `renew` and `release`.

use super::given::*;
use crate::store::{Claim, Epoch, Renewal, ShardId, StoreError};

pub(super) async fn a_fresh_shard_is_granted_clean_at_epoch_one(store: AnyStore) {
    let claimed = claim(&store, &start(1, "host-a", &[0, 7])).await;
    assert_eq!(grants(&claimed), [(0, 1, true), (7, 1, true)]);
    assert_eq!(claimed.held, []);
}

pub(super) async fn grants_come_in_the_order_asked_for(store: AnyStore) {
    let claimed = claim(&store, &start(1, "host-a", &[9, 2, 100, 10])).await;
    assert_eq!(grants(&claimed).iter().map(|grant| grant.0).collect::<Vec<_>>(), [9, 2, 100, 10]);
}

pub(super) async fn each_change_of_owner_raises_the_epoch_by_one(store: AnyStore) {
    for life in 1..=12 {
        let claimed = claim(&store, &start(life, "host-a", &[3])).await;
        assert_eq!(grants(&claimed), [(3, life, life == 1)], "life {life} of the host");
    }
}

pub(super) async fn repeating_a_claim_keeps_epoch_and_clean_mark(store: AnyStore) {
    let first = start(1, "host-a", &[0]);
    let second = start(2, "host-a", &[0, 1]);
    for _ in 0..3 {
        assert_eq!(grants(&claim(&store, &first).await), [(0, 1, true)]);
    }
    for _ in 0..3 {
        assert_eq!(grants(&claim(&store, &second).await), [(0, 2, false), (1, 1, true)]);
    }
    // Even by a running host, and even after its lease has run out.
    let again = with_lease(TINY, running(2, "host-a", &[1, 0]));
    for _ in 0..3 {
        assert_eq!(grants(&claim(&store, &again).await), [(1, 1, true), (0, 2, false)]);
    }
}

pub(super) async fn a_shard_given_up_and_claimed_again_has_a_greater_epoch(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0, 1]).await;
    owner.commit(0, vec![put("i", "k", "before")]).await;
    let late = owner.next(vec![owner.batch(0, vec![put("i", "k", "late")])]);
    let again = Claim { given_up: vec![(ShardId(0), Epoch(1))], ..running(1, "host-a", &[1, 0]) };
    // Repeated, it is the same claim, whatever has been given up long ago.
    for _ in 0..3 {
        assert_eq!(grants(&claim(&store, &again).await), [(1, 1, true), (0, 2, false)]);
    }
    assert_fenced(&one(commit(&store, &late).await), 0, 1, 2);
    let renewed = store.renew(&Renewal::new(owner.incarnation, LONG)).await.expect("the lease is renewed");
    assert_eq!(ids(&renewed.owned), [0, 1]);
    owner.epochs.insert(0, Epoch(2));
    owner.commit(0, vec![put("i", "k", "after")]).await;
    match said(store.commit(&late).await) {
        Err(StoreError::Fenced { .. } | StoreError::Stale { .. }) => {}
        other => unexpected("what was sent under an epoch that was given up changes nothing", &other),
    }
    assert_eq!(value(&store, 0, "i", "k").await.as_deref(), Some("after"));
    let given_up = vec![(ShardId(0), Epoch(2)), (ShardId(1), Epoch(1))];
    let again = Claim { given_up, ..running(1, "host-a", &[0, 1]) };
    assert_eq!(grants(&claim(&store, &again).await), [(0, 3, false), (1, 2, false)]);
}

pub(super) async fn a_start_takes_the_shards_of_its_own_host_name_at_once(store: AnyStore) {
    claim(&store, &start(1, "host-a", &[0, 1])).await;
    let claimed = claim(&store, &start(2, "host-a", &[0, 1, 2])).await;
    assert_eq!(grants(&claimed), [(0, 2, false), (1, 2, false), (2, 1, true)]);
    assert_eq!(claimed.held, []);
}

pub(super) async fn a_start_ends_the_earlier_incarnation_wholly(store: AnyStore) {
    let mut first = Owner::start(&store, 1, "host-a", &[0, 1]).await;
    first.commit(1, vec![put("i", "before", "1")]).await;
    // Shard 1 is not asked for by the second life, and is lost to the first all the same.
    claim(&store, &start(2, "host-a", &[0])).await;
    for shard in [0, 1] {
        match first.try_commit(shard, vec![put("i", "after", "1")]).await {
            Err(StoreError::Fenced { .. }) => {}
            other => unexpected("an ended incarnation writes nothing more", &other),
        }
        assert_eq!(value(&store, shard, "i", "after").await, None, "shard {shard}");
    }
    assert_eq!(value(&store, 1, "i", "before").await.as_deref(), Some("1"));
}

pub(super) async fn a_start_leaves_other_host_names_alone(store: AnyStore) {
    let mut other = Owner::start(&store, 1, "host-a", &[0]).await;
    let claimed = claim(&store, &start(2, "host-aa", &[0, 1])).await;
    assert_eq!(grants(&claimed), [(1, 1, true)]);
    assert_eq!(held(&claimed), [(0, "host-a")]);
    other.commit(0, vec![put("i", "k", "v")]).await;
    let renewed =
        store.renew(&Renewal::new(other.incarnation, LONG)).await.expect("another host's start ends nobody else");
    assert_eq!(ids(&renewed.owned), [0]);
}

pub(super) async fn a_running_claim_takes_nothing_from_a_living_lease_of_its_own_host_name(store: AnyStore) {
    let mut first = Owner::start(&store, 1, "host-a", &[0]).await;
    let claimed = claim(&store, &running(2, "host-a", &[0])).await;
    assert_eq!((grants(&claimed), held(&claimed)), (vec![], vec![(0, "host-a")]));
    first.commit(0, vec![put("i", "k", "v")]).await;
    assert!(store.renew(&Renewal::new(first.incarnation, LONG)).await.is_ok(), "a running claim ends nobody");
}

pub(super) async fn a_held_shard_names_its_holder_and_the_time_left(store: AnyStore) {
    claim(&store, &start(1, "Host \"ä\"", &[0])).await;
    let claimed = claim(&store, &running(2, "host-b", &[0])).await;
    assert_eq!(held(&claimed), [(0, "Host \"ä\"")]);
    let remaining = claimed.held[0].remaining;
    assert!(
        remaining <= LONG && remaining > LONG / 2,
        "of a lease of {LONG:?} just begun, {remaining:?} was said to be left"
    );
}

pub(super) async fn an_expired_lease_can_be_taken_and_is_not_clean(store: AnyStore) {
    claim(&store, &with_lease(TINY, start(1, "host-a", &[0]))).await;
    let claimed = claim_when_free(&store, &running(2, "host-b", &[0])).await;
    assert_eq!(grants(&claimed), [(0, 2, false)]);
    let back = claim(&store, &running(1, "host-a", &[0])).await;
    assert_eq!(held(&back), [(0, "host-b")], "the old owner has no claim to what was taken");
}

pub(super) async fn a_claim_grants_what_is_free_and_names_what_is_held(store: AnyStore) {
    claim(&store, &start(1, "host-a", &[1, 3])).await;
    claim(&store, &start(2, "host-b", &[5])).await;
    let claimed = claim(&store, &start(3, "host-c", &[5, 4, 3, 2, 1])).await;
    assert_eq!(grants(&claimed), [(4, 1, true), (2, 1, true)]);
    let mut held = held(&claimed);
    held.sort_unstable();
    assert_eq!(held, [(1, "host-a"), (3, "host-a"), (5, "host-b")]);
}

pub(super) async fn clean_speaks_of_the_last_owner_only(store: AnyStore) {
    let first = Owner::start(&store, 1, "host-a", &[0]).await;
    store.release(first.incarnation, &[(ShardId(0), None)]).await.expect("a release is answered");
    let second = claim(&store, &start(2, "host-b", &[0])).await;
    assert_eq!(grants(&second), [(0, 2, true)], "the last owner released it");
    let third = claim(&store, &start(3, "host-b", &[0])).await;
    assert_eq!(grants(&third), [(0, 3, false)], "the last owner did not, whatever the one before it did");
}

pub(super) async fn a_shard_of_an_ended_life_is_not_clean_whenever_it_is_claimed(store: AnyStore) {
    claim(&store, &with_lease(TINY, start(1, "host-a", &[0, 1, 2]))).await;
    // Nobody has released the others, though the life that owned them is over.
    assert_eq!(grants(&claim(&store, &start(2, "host-a", &[0])).await), [(0, 2, false)]);
    let third = claim(&store, &start(3, "host-a", &[0, 1])).await;
    assert_eq!(grants(&third), [(0, 3, false), (1, 2, false)], "by a later life of its host");
    let other = claim_when_free(&store, &running(4, "host-b", &[2])).await;
    assert_eq!(grants(&other), [(2, 2, false)], "by another host");
}

pub(super) async fn a_claim_starts_the_lease_of_all_shards_anew(store: AnyStore) {
    claim(&store, &with_lease(TINY, start(1, "host-a", &[0]))).await;
    claim(&store, &with_lease(LONG, running(1, "host-a", &[1]))).await;
    let claimed = claim(&store, &running(2, "host-b", &[0, 1])).await;
    assert_eq!((grants(&claimed), held(&claimed).len()), (vec![], 2), "one lease covers all shards of an incarnation");
}

pub(super) async fn each_claim_is_told_the_same_number_of_overlapping_writes(store: AnyStore) {
    let first = claim(&store, &start(1, "host-a", &[0])).await.overlap;
    for (incarnation, host) in [(1, "host-a"), (2, "host-b"), (3, "host-a")] {
        let claimed = claim(&store, &start(incarnation, host, &[0, 1])).await;
        assert_eq!(claimed.overlap, first, "a store does not change its mind");
    }
}

pub(super) async fn a_replaced_incarnation_cannot_claim(store: AnyStore) {
    claim(&store, &start(1, "host-a", &[0])).await;
    claim(&store, &start(2, "host-a", &[0])).await;
    for wanted in [start(1, "host-a", &[0, 5]), running(1, "host-a", &[0, 5])] {
        match store.claim(&wanted).await {
            Err(StoreError::Replaced) => {}
            other => unexpected("a replaced incarnation cannot claim", &other),
        }
    }
    let claimed = claim(&store, &running(2, "host-a", &[0, 5])).await;
    assert_eq!(grants(&claimed), [(0, 2, false), (5, 1, true)], "the refused claims granted nothing and ended nobody");
}

pub(super) async fn another_shard_count_is_refused_with_both_numbers(store: AnyStore) {
    claim(&store, &start(1, "host-a", &[0])).await;
    for shard_count in [SHARD_COUNT - 1, SHARD_COUNT + 1, SHARD_COUNT * 2] {
        let error = store.claim(&Claim { shard_count, ..start(2, "host-b", &[1]) }).await;
        match error {
            Err(StoreError::Mismatch { shard_count: asked, hash_version, stored_shard_count, stored_hash_version }) => {
                assert_eq!((asked, stored_shard_count), (shard_count, SHARD_COUNT));
                assert_eq!((hash_version, stored_hash_version), (HASH_VERSION, HASH_VERSION));
            }
            other => unexpected("another shard count is refused", &other),
        }
    }
}

pub(super) async fn another_hash_version_is_refused_with_both_numbers(store: AnyStore) {
    let first = Claim { hash_version: 5, ..start(1, "host-a", &[0]) };
    claim(&store, &first).await;
    for version in [4, 6] {
        match store.claim(&Claim { hash_version: version, ..start(2, "host-b", &[1]) }).await {
            Err(StoreError::Mismatch { shard_count, hash_version, stored_shard_count, stored_hash_version }) => {
                assert_eq!((hash_version, stored_hash_version), (version, 5));
                assert_eq!((shard_count, stored_shard_count), (SHARD_COUNT, SHARD_COUNT));
            }
            other => unexpected("another hash version is refused", &other),
        }
    }
    assert_eq!(grants(&claim(&store, &first).await), [(0, 1, true)], "the first claim's values are the recorded ones");
}

pub(super) async fn a_refused_configuration_ends_and_grants_nothing(store: AnyStore) {
    let mut first = Owner::start(&store, 1, "host-a", &[0]).await;
    let refused = store.claim(&Claim { shard_count: 7, ..start(2, "host-a", &[0, 1]) }).await;
    assert!(matches!(refused, Err(StoreError::Mismatch { .. })), "refused, not {refused:?}");
    first.commit(0, vec![put("i", "k", "v")]).await;
    assert!(store.renew(&Renewal::new(first.incarnation, LONG)).await.is_ok(), "a refused start ends nobody");
    assert_eq!(
        grants(&claim(&store, &start(3, "host-b", &[1])).await),
        [(1, 1, true)],
        "shard 1 was granted to nobody"
    );
}

pub(super) async fn of_many_claimers_at_once_one_gets_each_shard(store: AnyStore) {
    let shards: Vec<u32> = (0..24).collect();
    let claimers: Vec<_> = (1..=8)
        .map(|n| {
            let (store, mut shards) = (store.clone(), shards.clone());
            shards.rotate_left(3 * usize::try_from(n).unwrap_or(0));
            tokio::spawn(async move { claim(&store, &start(n, &format!("host-{n}"), &shards)).await })
        })
        .collect();
    let mut granted = Vec::new();
    for claimer in claimers {
        let claimed = claimer.await.expect("a claimer ends");
        assert_eq!(claimed.granted.len() + claimed.held.len(), shards.len(), "each shard is granted or held");
        granted.extend(grants(&claimed));
    }
    granted.sort_unstable();
    assert_eq!(granted, shards.iter().map(|&shard| (shard, 1, true)).collect::<Vec<_>>());
}

pub(super) async fn claim_post_and_renew_tell_the_same_clock(store: AnyStore) {
    let claimed = claim(&store, &start(1, "host-a", &[0])).await;
    post(&store, message(0, "i", "m", "")).await;
    let renewed = store.renew(&Renewal::new(life(1), LONG)).await.expect("the lease is renewed");
    let arrived = inbox(&store, 0).await[0].arrived;
    assert!(claimed.now <= arrived, "claimed at {:?}, and after that a message arrived at {arrived:?}", claimed.now);
    assert!(arrived <= renewed.now, "a message arrived at {arrived:?}, and after that renewed at {:?}", renewed.now);
}

pub(super) async fn renew_lists_owned_shards_ascending(store: AnyStore) {
    let owner = Owner::start(&store, 1, "host-a", &[100, 9, 1023, 10, 2]).await;
    claim(&store, &start(2, "host-b", &[3])).await;
    let renewed = store.renew(&Renewal::new(owner.incarnation, LONG)).await.expect("the lease is renewed");
    assert_eq!(ids(&renewed.owned), [2, 9, 10, 100, 1023]);
    assert_eq!(renewed.unknown, [], "nothing is unknown to a store that is all there");
    assert!(renewed.inbox.is_empty(), "nothing was posted, but {:?}", renewed.inbox);
}

pub(super) async fn an_unknown_incarnation_cannot_renew(store: AnyStore) {
    claim(&store, &start(1, "host-a", &[0])).await;
    match store.renew(&Renewal::new(life(2), LONG)).await {
        Err(StoreError::Replaced) => {}
        other => unexpected("an unknown incarnation cannot renew", &other),
    }
}

pub(super) async fn a_replaced_incarnation_cannot_renew(store: AnyStore) {
    let first = Owner::start(&store, 1, "host-a", &[0, 1]).await;
    claim(&store, &start(2, "host-a", &[0])).await;
    for _ in 0..2 {
        match store.renew(&Renewal::new(first.incarnation, LONG)).await {
            Err(StoreError::Replaced) => {}
            other => unexpected("a replaced incarnation cannot renew", &other),
        }
    }
}

pub(super) async fn renew_extends_a_lease_that_ran_out(store: AnyStore) {
    let first = Owner::claim(&store, &with_lease(TINY, start(1, "host-a", &[0, 1]))).await;
    // Once the other host has got shard 0, the lease has surely run out.
    claim_when_free(&store, &start(2, "host-b", &[0])).await;
    let renewed = store.renew(&Renewal::new(first.incarnation, LONG)).await.expect("only a claim takes a shard away");
    assert_eq!(ids(&renewed.owned), [1]);
    let claimed = claim(&store, &start(3, "host-c", &[1])).await;
    assert_eq!(held(&claimed), [(1, "host-a")], "the lease lives again");
}

pub(super) async fn renew_leaves_out_shards_that_were_taken(store: AnyStore) {
    let first = Owner::claim(&store, &with_lease(TINY, start(1, "host-a", &[0]))).await;
    post(&store, message(0, "i", "m", "")).await;
    claim_when_free(&store, &start(2, "host-b", &[0])).await;
    let renewed =
        store.renew(&Renewal::new(first.incarnation, LONG)).await.expect("losing all shards is not being replaced");
    assert_eq!((ids(&renewed.owned), ids(&renewed.inbox)), (vec![], vec![]));
}

pub(super) async fn renew_names_owned_shards_with_inbox_rows(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[20, 3, 100]).await;
    claim(&store, &start(2, "host-b", &[4])).await;
    for shard in [100, 3, 4, 5] {
        post(&store, message(shard, "i", "m", "")).await;
    }
    let renewed = store.renew(&Renewal::new(owner.incarnation, LONG)).await.expect("the lease is renewed");
    assert_eq!(ids(&renewed.owned), [3, 20, 100]);
    assert_eq!(ids(&renewed.inbox), [3, 100], "its own shards, ascending, and no others");
    let row = inbox(&store, 3).await.remove(0);
    owner.commit(3, vec![crate::store::Op::RemoveMessage(row.key())]).await;
    let renewed = store.renew(&Renewal::new(owner.incarnation, LONG)).await.expect("the lease is renewed");
    assert_eq!(ids(&renewed.inbox), [100], "an emptied inbox is not named");
}

pub(super) async fn a_released_shard_is_free_at_once_and_clean(store: AnyStore) {
    let first = Owner::start(&store, 1, "host-a", &[0]).await;
    store.release(first.incarnation, &[(ShardId(0), None)]).await.expect("a release is answered");
    let renewed = store.renew(&Renewal::new(first.incarnation, LONG)).await.expect("who released is still alive");
    assert!(renewed.owned.is_empty(), "all was released, but {:?}", renewed.owned);
    assert_eq!(grants(&claim(&store, &running(2, "host-b", &[0])).await), [(0, 2, true)]);
    store.release(life(2), &[(ShardId(0), None)]).await.expect("a release is answered");
    let back = claim(&store, &running(1, "host-a", &[0])).await;
    assert_eq!(grants(&back), [(0, 3, true)], "a shard taken back is a new ownership");
}

pub(super) async fn a_release_gives_up_only_the_shards_named(store: AnyStore) {
    let mut first = Owner::start(&store, 1, "host-a", &[0, 1, 2]).await;
    store.release(first.incarnation, &[(ShardId(0), None), (ShardId(2), None)]).await.expect("a release is answered");
    let claimed = claim(&store, &running(2, "host-b", &[0, 1, 2])).await;
    assert_eq!(grants(&claimed), [(0, 2, true), (2, 2, true)]);
    assert_eq!(held(&claimed), [(1, "host-a")]);
    first.commit(1, vec![put("i", "k", "v")]).await;
}

pub(super) async fn a_release_that_comes_late_undoes_no_later_claim(store: AnyStore) {
    let first = Owner::start(&store, 1, "host-a", &[0]).await;
    let release = async |epoch: u64| {
        let named = [(ShardId(0), Some(Epoch(epoch)))];
        store.release(first.incarnation, &named).await.expect("a release is answered");
    };
    release(1).await;
    let mut second = Owner::claim(&store, &running(1, "host-a", &[0])).await;
    assert_eq!(second.epochs[&0], Epoch(2));
    // As one that was repeated, and of which the first try was held back.
    release(1).await;
    second.commit(0, vec![put("i", "k", "v")]).await;
    let given_up = Claim { given_up: vec![(ShardId(0), Epoch(2))], ..running(1, "host-a", &[0]) };
    assert_eq!(grants(&claim(&store, &given_up).await), [(0, 3, false)]);
    release(2).await;
    release(4).await;
    let renewed = store.renew(&Renewal::new(first.incarnation, LONG)).await.expect("the lease is renewed");
    assert_eq!(ids(&renewed.owned), [0], "it is owned under another epoch than those");
    assert_eq!(held(&claim(&store, &running(2, "host-b", &[0])).await), [(0, "host-a")]);
    release(3).await;
    assert_eq!(grants(&claim(&store, &running(2, "host-b", &[0])).await), [(0, 4, true)]);
}

pub(super) async fn a_release_by_somebody_else_changes_nothing(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    claim(&store, &start(2, "host-b", &[1])).await;
    for stranger in [2, 3] {
        let released = store.release(life(stranger), &[(ShardId(0), None), (ShardId(9), None)]).await;
        released.expect("shards it does not own are left alone, without an error");
    }
    owner.commit(0, vec![put("i", "k", "v")]).await;
    let claimed = claim(&store, &running(3, "host-c", &[0, 9])).await;
    assert_eq!((grants(&claimed), held(&claimed)), (vec![(9, 1, true)], vec![(0, "host-a")]));
}

pub(super) async fn releasing_twice_is_safe(store: AnyStore) {
    let first = Owner::start(&store, 1, "host-a", &[0]).await;
    for _ in 0..2 {
        store.release(first.incarnation, &[(ShardId(0), None)]).await.expect("a release is answered");
    }
    let mut second = Owner::start(&store, 2, "host-b", &[0]).await;
    // A repeat that arrives after the next owner has come.
    store.release(first.incarnation, &[(ShardId(0), None)]).await.expect("a release is answered");
    second.commit(0, vec![put("i", "k", "v")]).await;
    let claimed = claim(&store, &running(3, "host-c", &[0])).await;
    assert_eq!(held(&claimed), [(0, "host-b")]);
}

pub(super) async fn a_released_shard_keeps_its_rows(store: AnyStore) {
    let mut first = Owner::start(&store, 1, "host-a", &[0]).await;
    let row = alarm("i", "a", 10);
    first.commit(0, vec![put("i", "k", "v"), crate::store::Op::PutAlarm(row.clone())]).await;
    post(&store, message(0, "i", "m", "")).await;
    store.release(first.incarnation, &[(ShardId(0), None)]).await.expect("a release is answered");
    claim(&store, &start(2, "host-b", &[0])).await;
    assert_eq!(storage(&store, 0, "i").await, [("k".into(), "v".into())]);
    assert_eq!(alarms(&store, 0).await, [row]);
    assert_eq!(inbox(&store, 0).await.len(), 1);
}

pub(super) async fn the_old_owner_writes_nothing_after_its_release(store: AnyStore) {
    let mut first = Owner::start(&store, 1, "host-a", &[0]).await;
    first.commit(0, vec![put("i", "k", "before")]).await;
    store.release(first.incarnation, &[(ShardId(0), None)]).await.expect("a release is answered");
    match first.try_commit(0, vec![put("i", "k", "after")]).await {
        Err(StoreError::Fenced { .. }) => {}
        other => unexpected("a released shard takes no write", &other),
    }
    assert_eq!(value(&store, 0, "i", "k").await.as_deref(), Some("before"));
}
