//! Members: who holds a lease, and what each says of itself.

use std::time::{Duration, Instant};

use super::given::*;
use crate::store::{
    Claim, Epoch, Hint, Hints, Member, MemberState, Members, Placement, Presence, Renewal, ShardId, StoreError,
};

/// A claim by a host that says this of itself.
fn saying(presence: Presence, claim: Claim) -> Claim {
    Claim { presence, ..claim }
}

fn at_address(address: &str, build: &str) -> Presence {
    Presence { address: Some(address.into()), build: build.into(), placement_version: 3, ..Presence::default() }
}

fn leaving() -> Presence {
    Presence { is_leaving: true, ..Presence::default() }
}

async fn renew(store: &AnyStore, incarnation: u64, presence: Presence) -> Members {
    let renewal = Renewal { presence, ..Renewal::new(life(incarnation), LONG) };
    store.renew(&renewal).await.expect("the lease is renewed").members
}

/// As who does not change anything sees them.
async fn members(store: &AnyStore, incarnation: u64) -> Members {
    renew(store, incarnation, Presence::default()).await
}

/// Marks a life, or takes the mark away, by whoever has seen all changes of members.
async fn cordon(store: &AnyStore, incarnation: u64, is_cordoned: bool) -> bool {
    let seen = store.members().await.expect("members are answered").version;
    store.cordon(life(incarnation), is_cordoned, seen).await.expect("it is answered")
}

fn names(members: &Members) -> Vec<(&str, u64)> {
    members.list.iter().map(|member| (&*member.name, member.incarnation.0)).collect()
}

fn of_life(members: &Members, incarnation: u64) -> &Member {
    let found = members.list.iter().find(|member| member.incarnation == life(incarnation));
    found.expect("the life is a member")
}

pub(super) async fn a_join_is_seen_by_the_next_of_the_others(store: AnyStore) {
    let first = claim(&store, &start(1, "host-b", &[0])).await.members;
    assert_eq!(names(&first), [("host-b", 1)], "the claimer is among them");
    let second = claim(&store, &start(2, "host-a", &[])).await.members;
    assert_eq!(names(&second), [("host-a", 2), ("host-b", 1)], "by name, also who owns nothing");
    assert!(second.version > first.version, "a join changes the number");
    assert_eq!(names(&members(&store, 1).await), [("host-a", 2), ("host-b", 1)]);
}

#[allow(clippy::disallowed_methods, reason = "the clock of a real store cannot be set")]
pub(super) async fn whoever_owns_nothing_sees_the_members_and_changes_none(store: AnyStore) {
    let look = async || store.members().await.expect("anyone may look");
    assert_eq!(names(&look().await), []);
    claim(&store, &saying(at_address("10.0.0.7:7000", "1"), start(1, "host-a", &[0]))).await;
    let mut short = Duration::from_millis(300);
    let (told, mut seen) = loop {
        let began = Instant::now();
        let told = claim(&store, &with_lease(short, start(2, "host-b", &[1]))).await.members;
        let seen = look().await;
        // A busy machine may look too late for a short lease.
        if began.elapsed() < short {
            break (told, seen);
        }
        short *= 2;
    };
    assert_eq!((names(&seen), seen.version), (names(&told), told.version));
    let one = of_life(&seen, 1);
    assert_eq!((one.address.as_deref(), one.placement_version), (Some("10.0.0.7:7000"), 3));
    assert!(one.remaining > LONG / 2 && of_life(&seen, 2).remaining <= short);
    for _ in 0..6_000 {
        if seen.list.len() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        seen = look().await;
    }
    assert_eq!(names(&seen), [("host-a", 1)], "nobody else has to look");
    // Its lease is not longer for having been looked at, nor is who has ended.
    assert_eq!(names(&members(&store, 1).await), [("host-a", 1)]);
}

pub(super) async fn every_claim_is_told_the_same_name_of_the_store(store: AnyStore) {
    let first = claim(&store, &start(1, "host-a", &[0])).await.store;
    assert!(first.as_deref() != Some(""), "no name is none");
    for other in [start(2, "host-b", &[]), start(3, "host-a", &[0])] {
        assert_eq!(claim(&store, &other).await.store, first, "of a host that comes later, and of a later life");
    }
}

pub(super) async fn a_member_is_as_it_has_said(store: AnyStore) {
    let presence = at_address("10.0.0.7:7000", "1.4.0+«ä»");
    claim(&store, &saying(presence.clone(), start(1, "host-a", &[0]))).await;
    let seen = claim(&store, &start(2, "host-b", &[1])).await.members;
    let one = of_life(&seen, 1);
    assert_eq!((one.address.as_deref(), &*one.build), (Some("10.0.0.7:7000"), "1.4.0+«ä»"));
    assert_eq!((one.state, one.placement_version), (MemberState::Up, 3));
    assert!(one.remaining > LONG / 2 && one.remaining <= LONG + Duration::from_millis(1), "{:?}", one.remaining);
    assert!(one.up < LONG / 2, "{:?}", one.up);
    assert_eq!(of_life(&seen, 2).address, None);
    // What a renewal says takes the place of what was said before.
    let moved = renew(&store, 1, at_address("10.0.0.8:7000", "1.5.0")).await;
    assert!(moved.version > seen.version, "it says something new");
    let seen = members(&store, 2).await;
    assert_eq!((of_life(&seen, 1).address.as_deref(), &*of_life(&seen, 1).build), (Some("10.0.0.8:7000"), "1.5.0"));
}

pub(super) async fn the_number_of_members_changes_with_them_and_only_then(store: AnyStore) {
    claim(&store, &start(1, "host-a", &[0])).await;
    let joined = claim(&store, &start(2, "host-b", &[1])).await.members;
    for n in [1, 2, 1] {
        assert_eq!(members(&store, n).await.version, joined.version, "a renewal that says nothing new changes nothing");
    }
    claim(&store, &running(2, "host-b", &[1, 7])).await;
    assert_eq!(members(&store, 1).await.version, joined.version, "nor does a claim");
}

#[allow(clippy::disallowed_methods, reason = "the clock of a real store cannot be set")]
pub(super) async fn a_member_ends_with_its_lease_by_the_clock_of_the_store(store: AnyStore) {
    claim(&store, &start(1, "host-a", &[0])).await;
    let short = Duration::from_millis(300);
    let before = claim(&store, &with_lease(short, start(2, "host-b", &[1]))).await.members;
    assert!(of_life(&before, 2).remaining <= short);
    let mut after = members(&store, 1).await;
    for _ in 0..6_000 {
        if after.list.len() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        after = members(&store, 1).await;
    }
    assert_eq!(names(&after), [("host-a", 1)], "nobody has to say that it ended");
    assert!(after.version > before.version);
    // It was not taken from, so it comes back.
    let back = members(&store, 2).await;
    assert_eq!(names(&back), [("host-a", 1), ("host-b", 2)]);
    assert!(back.version > after.version);
}

pub(super) async fn a_start_takes_the_place_of_the_member_of_its_name(store: AnyStore) {
    claim(&store, &start(1, "host-a", &[0])).await;
    let before = claim(&store, &start(2, "host-b", &[1])).await.members;
    let after = claim(&store, &start(3, "host-a", &[])).await.members;
    assert_eq!(names(&after), [("host-a", 3), ("host-b", 2)], "the life before it has ended");
    assert!(after.version > before.version);
    match store.renew(&Renewal::new(life(1), LONG)).await {
        Err(StoreError::Replaced) => {}
        other => unexpected("an ended life comes back by no renewal", &other),
    }
    assert_eq!(names(&members(&store, 2).await), [("host-a", 3), ("host-b", 2)]);
}

pub(super) async fn one_that_leaves_is_told_so_and_gone_when_it_owns_nothing(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0, 1]).await;
    let before = claim(&store, &start(2, "host-b", &[2])).await.members;
    let told = renew(&store, 1, leaving()).await;
    assert!(told.version > before.version);
    assert_eq!(of_life(&members(&store, 2).await, 1).state, MemberState::Leaving);
    store.release(life(1), &[(ShardId(0), Some(Epoch(1)))]).await.expect("it is released");
    assert_eq!(of_life(&members(&store, 2).await, 1).state, MemberState::Leaving, "it still owns one");
    owner.commit(1, vec![put("i", "k", "v")]).await;
    store.release(life(1), &[(ShardId(1), Some(Epoch(1)))]).await.expect("it is released");
    let after = members(&store, 2).await;
    assert_eq!(names(&after), [("host-b", 2)]);
    assert!(after.version > told.version);
}

pub(super) async fn one_that_owns_nothing_and_does_not_leave_stays(store: AnyStore) {
    claim(&store, &start(1, "host-a", &[0])).await;
    claim(&store, &start(2, "host-b", &[1])).await;
    store.release(life(1), &[(ShardId(0), Some(Epoch(1)))]).await.expect("it is released");
    assert_eq!(names(&members(&store, 2).await), [("host-a", 1), ("host-b", 2)]);
}

pub(super) async fn a_cordon_is_seen_by_all_until_it_is_taken_away(store: AnyStore) {
    claim(&store, &start(1, "host-a", &[0])).await;
    let before = claim(&store, &start(2, "host-b", &[1])).await.members;
    assert!(!cordon(&store, 3, true).await, "there is none of that life");
    assert_eq!(members(&store, 2).await.version, before.version);
    assert!(cordon(&store, 1, true).await);
    let marked = members(&store, 2).await;
    assert!(marked.version > before.version);
    let states = |members: &Members| members.list.iter().map(|member| member.state).collect::<Vec<_>>();
    assert_eq!(states(&marked), [MemberState::Cordoned, MemberState::Up]);
    // What the host says of itself is something else.
    assert_eq!(states(&renew(&store, 1, at_address("x:1", "")).await), [MemberState::Cordoned, MemberState::Up]);
    assert!(cordon(&store, 1, true).await, "once more is the same");
    assert!(cordon(&store, 1, false).await);
    assert_eq!(states(&members(&store, 2).await), [MemberState::Up, MemberState::Up]);
    // It belongs to a life.
    assert!(cordon(&store, 1, true).await);
    assert_eq!(states(&claim(&store, &start(3, "host-a", &[0])).await.members), [MemberState::Up, MemberState::Up]);
    assert!(!cordon(&store, 1, true).await, "a mark that comes late marks nobody");
    assert_eq!(states(&members(&store, 2).await), [MemberState::Up, MemberState::Up]);
}

pub(super) async fn a_cordon_that_comes_late_undoes_no_later_one(store: AnyStore) {
    claim(&store, &start(1, "host-a", &[0])).await;
    claim(&store, &start(2, "host-b", &[1])).await;
    let seen = members(&store, 2).await.version;
    // The first call is still on its way when the next one is answered; to that one nothing changes, for the host is not marked.
    assert!(store.cordon(life(1), false, seen).await.expect("it is answered"));
    assert!(!store.cordon(life(1), true, seen).await.expect("it is answered"), "the members have changed since");
    assert_eq!(of_life(&members(&store, 2).await, 1).state, MemberState::Up);
    // The other way round.
    let seen = members(&store, 2).await.version;
    assert!(store.cordon(life(1), true, seen).await.expect("it is answered"));
    assert!(!store.cordon(life(1), false, seen).await.expect("it is answered"), "the members have changed since");
    let told = members(&store, 2).await;
    assert_eq!(of_life(&told, 1).state, MemberState::Cordoned);
    // Nor one of a time when another host was not there yet.
    claim(&store, &start(3, "host-c", &[2])).await;
    assert!(!store.cordon(life(1), false, told.version).await.expect("it is answered"));
    assert!(cordon(&store, 1, false).await, "whoever has seen that may");
}

pub(super) async fn whoever_leaves_is_leaving_to_its_end(store: AnyStore) {
    claim(&store, &start(1, "host-a", &[0])).await;
    claim(&store, &start(2, "host-b", &[1])).await;
    let told = renew(&store, 1, leaving()).await;
    // As it was sent before that, and comes late.
    let late = members(&store, 1).await;
    assert_eq!((of_life(&late, 1).state, late.version), (MemberState::Leaving, told.version));
    assert_eq!(of_life(&members(&store, 2).await, 1).state, MemberState::Leaving);
}

pub(super) async fn one_that_has_left_comes_back_by_no_claim_or_renewal(store: AnyStore) {
    let first = Owner::start(&store, 1, "host-a", &[0]).await;
    claim(&store, &start(2, "host-b", &[1])).await;
    renew(&store, 1, leaving()).await;
    store.release(first.incarnation, &[(ShardId(0), Some(Epoch(1)))]).await.expect("it is released");
    for presence in [leaving(), Presence::default()] {
        match store.renew(&Renewal { presence, ..Renewal::new(life(1), LONG) }).await {
            Err(StoreError::Replaced) => {}
            other => unexpected("a renewal that was held back brings nobody back", &other),
        }
    }
    match store.claim(&running(1, "host-a", &[0])).await {
        Err(StoreError::Replaced) => {}
        other => unexpected("nor does a claim", &other),
    }
    store.release(first.incarnation, &[(ShardId(0), None)]).await.expect("repeating is safe");
    assert_eq!(names(&members(&store, 2).await), [("host-b", 2)]);
    let next = claim(&store, &start(3, "host-a", &[0])).await;
    assert_eq!(grants(&next), [(0, 2, true)], "the next life of its name starts as ever");
    assert_eq!(names(&next.members), [("host-a", 3), ("host-b", 2)]);
}

pub(super) async fn hosts_of_the_other_placement_are_refused_while_one_holds_a_lease(store: AnyStore) {
    let live = |claim| saying(Presence { placement: Placement::Live, ..Presence::default() }, claim);
    claim(&store, &start(1, "host-a", &[0])).await;
    match store.claim(&live(start(2, "host-b", &[0, 1]))).await {
        Err(StoreError::OtherPlacement { placement: Placement::Live, stored: Placement::List }) => {}
        other => unexpected("hosts of both placements do not work at once", &other),
    }
    assert_eq!(names(&members(&store, 1).await), [("host-a", 1)], "the one refused is no member");
    // Its own earlier life is no hindrance, and from then on the others are refused.
    assert_eq!(grants(&claim(&store, &live(start(3, "host-a", &[0]))).await), [(0, 2, false)]);
    match store.claim(&start(4, "host-b", &[1])).await {
        Err(StoreError::OtherPlacement { placement: Placement::List, stored: Placement::Live }) => {}
        other => unexpected("hosts of both placements do not work at once", &other),
    }
    // Back, once it has left.
    let renewal = Presence { is_leaving: true, placement: Placement::Live, ..Presence::default() };
    renew(&store, 3, renewal).await;
    store.release(life(3), &[(ShardId(0), Some(Epoch(2)))]).await.expect("it is released");
    assert_eq!(grants(&claim(&store, &start(4, "host-b", &[1])).await), [(1, 1, true)]);
}

pub(super) async fn two_hundred_members_are_all_seen(store: AnyStore) {
    for n in 1..=200 {
        let presence = at_address(&format!("10.0.0.{n}:7000"), "1");
        let claimed = claim(&store, &saying(presence, start(n, &format!("host-{n:03}"), &[]))).await;
        assert_eq!(claimed.members.list.len() as u64, n);
    }
    let seen = renew(&store, 7, at_address("10.0.0.7:7000", "1")).await;
    let expected: Vec<_> = (1..=200).map(|n| format!("host-{n:03}")).collect();
    assert_eq!(seen.list.iter().map(|member| member.name.to_string()).collect::<Vec<_>>(), expected);
    assert!(
        seen.list
            .iter()
            .all(|member| member.address.as_deref() == Some(&format!("10.0.0.{}:7000", member.incarnation.0)))
    );
}

/// Waits for a hint at the fleet, as long as the store may take when it is busy.
#[allow(clippy::disallowed_methods, reason = "the clock of a real store cannot be set")]
async fn hears(hints: &mut Hints) -> bool {
    let listen = async {
        while let Some(hint) = hints.next().await {
            if hint == Hint::Fleet {
                return;
            }
        }
        unexpected("a store that answers keeps its stream of hints open", hints)
    };
    tokio::time::timeout(Duration::from_millis(200), listen).await.is_ok()
}

/// Changes something until it is heard of: a hint may be lost.
async fn until_heard<F: Future<Output = ()>>(hints: &mut Hints, what: &str, change: impl Fn(u64) -> F) {
    for n in 0..50 {
        // What was heard late is of the change before.
        while hears(hints).await {}
        change(n).await;
        if hears(hints).await {
            return;
        }
    }
    unexpected("a hint follows a change of members or owners, at least sometimes", &what)
}

pub(super) async fn a_hint_follows_a_join_a_release_a_cordon_and_a_leave(store: AnyStore) {
    claim(&store, &start(1, "host-a", &[0])).await;
    let mut hints = store.watch(life(1)).await.expect("a watch is answered");
    let store = &store;
    until_heard(&mut hints, "a join", |n| async move {
        claim(store, &start(100 + n, &format!("host-{n}"), &[])).await;
    })
    .await;
    until_heard(&mut hints, "a release", |_| async move {
        claim(store, &running(100, "host-0", &[7])).await;
        store.release(life(100), &[(ShardId(7), None)]).await.expect("it is released");
    })
    .await;
    until_heard(&mut hints, "a cordon", |n| async move {
        cordon(store, 100, n % 2 == 0).await;
    })
    .await;
    until_heard(&mut hints, "a leave", |n| async move {
        let name = format!("gone-{n}");
        claim(store, &saying(leaving(), start(1_000 + n, &name, &[7]))).await;
        store.release(life(1_000 + n), &[(ShardId(7), None)]).await.expect("it is released");
    })
    .await;
}
