//! A mark on a host, set by a tool while others set it too.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use super::*;
use crate::clock::Timestamp;
use crate::store::{Claim, ClaimKind, Incarnation, MemberState, MemoryStore, Presence};
use crate::testing::{Fault, FaultStore, Method, SimClock};

async fn join(store: &MemoryStore, incarnation: u64, host: &str) {
    let claim = Claim {
        incarnation: Incarnation(incarnation),
        host: host.into(),
        shards: Vec::new(),
        given_up: Vec::new(),
        shard_count: 64,
        hash_version: 1,
        lease: Duration::from_secs(3_600),
        kind: ClaimKind::Start,
        presence: Presence::default(),
    };
    store.claim(&claim).await.unwrap();
}

/// A tool that looks after the hosts `a` and `b`.
async fn of_two() -> (FleetClient, Arc<FaultStore>, MemoryStore) {
    let clock: Arc<dyn Clock> = Arc::new(SimClock::new(Timestamp::UNIX_EPOCH));
    let memory = MemoryStore::with_clock(clock.clone());
    join(&memory, 1, "a").await;
    join(&memory, 2, "b").await;
    let store = Arc::new(FaultStore::seeded(Arc::new(memory.clone()), clock.clone(), 1));
    (FleetClient::new(store.clone(), Fleet::live(64).unwrap()).clock(clock), store, memory)
}

async fn states(client: &FleetClient) -> Vec<(String, MemberState)> {
    client.members().await.unwrap().into_iter().map(|member| (member.name.to_string(), member.state)).collect()
}

fn state(host: &str, state: MemberState) -> (String, MemberState) {
    (host.to_owned(), state)
}

#[tokio::test(start_paused = true)]
async fn a_mark_whose_call_was_not_answered_undoes_no_later_one_when_it_reaches_the_store() {
    let (client, store, _) = of_two().await;
    store.fail_next(Method::Cordon, Fault::LateUntilTold);
    assert!(matches!(client.cordon("b", true).await, Err(ContextError::Store(_))));
    assert!(client.cordon("b", false).await.unwrap());
    assert_eq!(store.deliver_late().await, 1);
    assert_eq!(states(&client).await, [state("a", MemberState::Up), state("b", MemberState::Up)]);
}

#[tokio::test(start_paused = true)]
async fn a_mark_that_hangs_in_the_store_is_an_error_in_time_and_undoes_no_later_one() {
    let (client, store, _) = of_two().await;
    store.fail_next(Method::Cordon, Fault::HangLate(Duration::from_secs(60)));
    assert!(matches!(client.cordon("b", true).await, Err(ContextError::Store(_))));
    assert!(client.cordon("b", false).await.unwrap());
    client.clock.sleep(Duration::from_secs(61)).await;
    assert_eq!(states(&client).await, [state("a", MemberState::Up), state("b", MemberState::Up)]);
}

#[tokio::test(start_paused = true)]
async fn a_host_is_marked_though_another_joins_between_the_look_at_the_members_and_the_mark() {
    let (client, store, memory) = of_two().await;
    store.fail_next(Method::Cordon, Fault::Delay(Duration::from_secs(1)));
    let meanwhile = async {
        while store.calls(Method::Cordon) == 0 {
            tokio::task::yield_now().await;
        }
        join(&memory, 3, "c").await;
    };
    let (is_marked, ()) = tokio::join!(client.cordon("b", true), meanwhile);
    assert!(is_marked.unwrap());
    assert_eq!(store.calls(Method::Cordon), 2, "the first came after another change");
    let (up, cordoned) = (MemberState::Up, MemberState::Cordoned);
    assert_eq!(states(&client).await, [state("a", up), state("b", cordoned), state("c", up)]);
    assert!(!client.cordon("d", true).await.unwrap(), "there is none of that name");
}
