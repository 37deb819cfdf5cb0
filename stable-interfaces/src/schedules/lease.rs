//! A host that stood still for longer than its lease, and goes on.

use std::time::Duration;

use shuttle::future::block_on;

use super::instances::{Add, Event, Options, Scene};
use super::{below, explore};
use crate::error::RequestError;
use crate::fleet::HASH_VERSION;
use crate::store::{Claim, ClaimKind, Incarnation, ShardId, Store};

#[test]
fn while_a_host_finds_out_that_its_shards_were_taken_it_handles_nothing_of_them() {
    explore(|| {
        block_on(async {
            let scene = Scene::new(Options::default()).await;
            let before = Add { durable: below(2) == 0, ..Add::default() };
            let first = scene.ask("a", before, None).await.expect("it is not cancelled").expect("it is waited for");
            assert_eq!(first.expect("nothing fails"), 1);
            // Nothing of this host runs while its lease ends and another one takes its shard.
            scene.clock.jump(Duration::from_secs(20));
            let taken = Claim {
                incarnation: Incarnation(1 << 62),
                host: "other".into(),
                shards: vec![ShardId(0)],
                shard_count: 1,
                hash_version: HASH_VERSION,
                lease: Duration::from_secs(1_000),
                kind: ClaimKind::Running,
            };
            assert_eq!(scene.store.claim(&taken).await.expect("a store in memory answers").granted.len(), 1);
            let asked: Vec<_> = (1..4)
                .map(|request| scene.ask("a", Add { request, waits: below(2), ..Add::default() }, None))
                .collect();
            scene.clock.wake();
            for reply in asked {
                let reply = reply.await.expect("it is not cancelled").expect("it is waited for");
                assert!(matches!(reply, Err(RequestError::Fenced | RequestError::NotOwner { .. })), "{reply:?}");
            }
            let (log, _) = scene.end().await;
            let begun = log.iter().filter(|event| matches!(event, Event::Entered { .. })).count();
            assert_eq!(begun, 1, "a handler of what is another's: {log:#?}");
        });
    });
}
