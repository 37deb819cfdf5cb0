//! Requests with keys, cut at every call of their store, and asked again in the next life: each has one effect, and its reply.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use stable_interfaces::{Health, Interface};
use system_tests::{Probe, Raise, Site, World, in_time};

use super::{CUTS, Cut, SECOND, first_life};

/// A request with a key that was asked, and the reply of the first life.
type Asked = Mutex<BTreeMap<(&'static str, String), Option<i64>>>;

/// Asks with keys: with the same one from several callers at once, in one life of an instance and the next.
async fn ask_with_keys(probes: &Interface<Probe>, asked: &Asked) {
    let ask = async |instance: &'static str, key: String| {
        asked.lock().entry((instance, key.clone())).or_default();
        let answer = probes.request_once(instance, &key, Raise(format!("e/{key}"))).await;
        if let Ok(times) = answer {
            asked.lock().insert((instance, key), Some(times));
        }
    };
    for round in 0..5 {
        let [first, second] = ["x", "y"].map(|name| format!("{name}{round}"));
        tokio::join!(
            ask("a", first.clone()),
            ask("a", first.clone()),
            ask("a", second.clone()),
            ask("b", first.clone())
        );
        if round % 2 == 1 {
            let _stopped = probes.stop("a").await;
        }
        ask("a", first).await;
    }
}

async fn launch(world: &World) -> Site {
    world.launch(world.local(), |probes| probes).await
}

/// Cuts requests with keys at store call `k`; whoever asks again in the next life has each of them once.
async fn cut_keys_at(world: &mut World, k: u64, cut: Cut) -> u64 {
    let asked = Asked::default();
    let calls = {
        let world: &World = world;
        let life = async {
            let site = launch(world).await;
            ask_with_keys(&site.probes, &asked).await;
            site.host.drain(10 * SECOND).await;
        };
        first_life(world, k, cut, life).await
    };
    if cut != Cut::Late {
        world.reopen().await;
    }
    let mut site = launch(world).await;
    world.pass(20 * SECOND).await;
    if site.host.health() == Health::Replaced {
        assert_eq!(cut, Cut::Late);
        drop(site);
        site = launch(world).await;
    }
    for ((instance, key), reply) in asked.into_inner() {
        let effect = format!("e/{key}");
        let again = site.probes.request_once(instance, &key, Raise(effect.clone())).await.unwrap();
        assert_eq!((again, reply.unwrap_or(1)), (1, 1), "{instance}, {key}, {cut:?} call {k}");
        let stored = site.probes.stored(instance, &*effect).await.unwrap();
        assert_eq!(stored[0].1, "1", "{instance}, {key}, {cut:?} call {k}");
    }
    assert!(site.host.drain(SECOND).await.released);
    calls
}

/// Cuts requests with keys at each `step`th call.
async fn cut_keys_everywhere(open: impl Fn() -> World, cuts: &[Cut], step: u64) -> u64 {
    let mut points = 0;
    for cut in cuts {
        for k in (0..).map(|i| i * step) {
            let mut world = open();
            if in_time(cut_keys_at(&mut world, k, *cut)).await <= k {
                break;
            }
            points += 1;
        }
    }
    points
}

#[tokio::test(start_paused = true)]
async fn a_cut_at_any_store_call_of_requests_with_keys_leaves_each_with_one_effect_and_its_reply() {
    let points = cut_keys_everywhere(World::in_memory, &[CUTS.as_slice(), &[Cut::Late]].concat(), 1).await;
    let every = if std::env::var_os("QUICK").is_some() { 23 } else { 2 };
    let on_fjall = cut_keys_everywhere(World::on_fjall, &CUTS, every).await;
    println!("{points} points in memory, {on_fjall} on Fjall, of requests with keys");
    assert!(points > 60, "there were only {points}");
}
