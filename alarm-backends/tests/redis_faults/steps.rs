//! Stores of other releases: an old one is brought up to date by the next life that enters it, one that is a step ahead is used, any
//! other is refused.

use super::*;

/// A server with the store of the first release on it.
fn first_release() -> Redis {
    let server = Redis::start();
    let mut client = redis::Client::open(server.url()).and_then(|client| client.get_connection()).unwrap();
    for fields in first_release::fields(include_str!("../first_release/redis.commands")) {
        let mut command = redis::Cmd::new();
        command.arg(fields);
        command.exec(&mut client).unwrap();
    }
    server
}

/// The record of the fleet: step, least step needed, release.
fn record(server: &Redis) -> Vec<String> {
    let answer = server.execute(&["HMGET", "{stable}:fleet", "step", "needs", "release"]);
    answer.lines().map(str::to_owned).collect()
}

fn set_record(server: &Redis, step: &str, needs: &str) {
    server.execute(&["HSET", "{stable}:fleet", "step", step, "needs", needs, "release", "9.0.0"]);
}

fn refusal<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> String {
    let Err(StoreError::Open(text, _)) = answer else { panic!("it must be refused, not {answer:?}") };
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_the_first_release_is_brought_up_to_date_and_has_everything() {
    let server = first_release();
    let store = patient(&server).connect().await.unwrap();
    first_release::is_whole_and_goes_on(&store).await;
    assert_eq!(record(&server), ["3", "2", env!("CARGO_PKG_VERSION")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_store_has_the_record_of_its_steps() {
    let server = Redis::start();
    let store = patient(&server).connect().await.unwrap();
    start(&store, 0..1).await;
    assert_eq!(record(&server), ["3", "2", env!("CARGO_PKG_VERSION")]);
    patient(&server).connect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_one_step_ahead_is_used_and_stays_at_its_step() {
    let server = first_release();
    set_record(&server, "4", "3");
    server.execute(&["HSET", "{stable:0}:own", "of-step-4", "1"]);
    let store = patient(&server).connect().await.unwrap();
    first_release::is_whole_and_goes_on(&store).await;
    assert_eq!(record(&server), ["4", "3", "9.0.0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_two_steps_ahead_is_refused_by_number_and_a_life_that_has_entered_goes_on() {
    let server = Redis::start();
    let store = patient(&server).connect().await.unwrap();
    start(&store, 0..1).await;
    set_record(&server, "5", "4");
    let unconnected = patient(&server).build().unwrap();
    let next = claim_of(Incarnation(2), "b", 1..2, ClaimKind::Start);
    for text in [refusal(patient(&server).connect().await), refusal(unconnected.claim(&next).await)] {
        for part in ["{stable}", "step 5", "release 9.0.0", "step 4", "knows step 3", "run the release that made it"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    assert_eq!(record(&server), ["5", "4", "9.0.0"], "nothing was written");
    let claimed = store.claim(&claim_of(ME, "a", 0..2, ClaimKind::Running)).await.unwrap();
    assert_eq!(claimed.granted.len(), 2);
    commit(&store, 1, 1, vec![put("k", "v")]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_whose_step_no_release_writes_is_refused() {
    let server = Redis::start();
    let store = patient(&server).connect().await.unwrap();
    start(&store, 0..1).await;
    for (step, needs) in [("0", "0"), ("x", "1"), ("2", ""), ("2", "3"), ("2", "-1")] {
        set_record(&server, step, needs);
        let unconnected = patient(&server).build().unwrap();
        let next = claim_of(Incarnation(2), "b", 1..2, ClaimKind::Start);
        for text in [refusal(patient(&server).connect().await), refusal(unconnected.claim(&next).await)] {
            assert!(text.contains("no release writes") && text.contains("restore it"), "{step} {needs}: {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_know_only_lists_of_hosts_are_refused_once_a_fleet_is_live() {
    let server = Redis::start();
    let store = patient(&server).connect().await.unwrap();
    let live = Presence { placement: Placement::Live, ..Presence::default() };
    store.claim(&Claim { presence: live, ..claim_of(ME, "a", 0..1, ClaimKind::Start) }).await.unwrap();
    assert_eq!(record(&server), ["3", "3", env!("CARGO_PKG_VERSION")]);
}
