//! Hints. They may be lost, so a case posts until one comes, up to a limit.

use std::time::Duration;

use super::given::*;
use crate::store::{Hint, Hints, ShardId};

/// The number of times a case posts before it gives up, and the time it listens after each.
const POSTS: u32 = 200;
const LISTEN: Duration = Duration::from_millis(50);

/// Tells whether a hint for `shard` comes within a short time.
#[allow(clippy::disallowed_methods, reason = "the clock of a real store cannot be set")]
async fn hears(hints: &mut Hints, shard: u32) -> bool {
    let listen = async {
        loop {
            match hints.next().await {
                Some(Hint::Inbox(ShardId(hint))) if hint == shard => return,
                Some(_) => {}
                None => unexpected("a store that answers keeps its stream of hints open", hints),
            }
        }
    };
    tokio::time::timeout(LISTEN, listen).await.is_ok()
}

/// Posts to `shard` until each of `listeners` has heard of it.
async fn post_until_heard(store: &AnyStore, shard: u32, listeners: &mut [Hints]) {
    let mut heard = vec![false; listeners.len()];
    for n in 0..POSTS {
        post(store, message(shard, "i", &format!("m-{n}"), "")).await;
        for (listener, heard) in listeners.iter_mut().zip(&mut heard) {
            *heard = *heard || hears(listener, shard).await;
        }
        if heard.iter().all(|heard| *heard) {
            return;
        }
    }
    unexpected("a hint follows a post, at least sometimes", &heard)
}

async fn listener(store: &AnyStore, incarnation: u64) -> Hints {
    store.watch(life(incarnation)).await.expect("a watch is answered")
}

pub(super) async fn a_hint_follows_a_post(store: AnyStore) {
    claim(&store, &start(1, "host-a", &[7, 1023])).await;
    let mut hints = [listener(&store, 1).await];
    post_until_heard(&store, 7, &mut hints).await;
    post_until_heard(&store, 1023, &mut hints).await;
}

pub(super) async fn two_listeners_both_hear_of_a_post(store: AnyStore) {
    claim(&store, &start(1, "host-a", &[7])).await;
    claim(&store, &start(2, "host-b", &[8])).await;
    let mut hints = [listener(&store, 1).await, listener(&store, 2).await];
    post_until_heard(&store, 7, &mut hints).await;
    let [first, gone] = hints;
    drop(gone);
    post_until_heard(&store, 8, &mut [first]).await;
}

pub(super) async fn hints_come_for_shards_of_nobody(store: AnyStore) {
    claim(&store, &start(1, "host-a", &[7])).await;
    let mut hints = [listener(&store, 1).await];
    // Claimed only after the watch began, or never.
    post_until_heard(&store, 900, &mut hints).await;
    claim(&store, &running(1, "host-a", &[8])).await;
    post_until_heard(&store, 8, &mut hints).await;
}
