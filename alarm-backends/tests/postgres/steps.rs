//! Schemas of other releases: an old one is brought up to date, one that is a step ahead is used, any other is refused.

use alarm_backends::postgres::PostgresStore;
use stable_interfaces::store::{After, Claim, ClaimKind, Page, Placement, Presence, Rows, ShardId};
use stable_interfaces::{Store, StoreError};

use super::first_release;
use super::given::*;

const DUMP: &str = include_str!("../first_release/postgres.sql");

/// A database with the schema of the first release.
async fn first_release() -> String {
    let url = fresh_database().await;
    raw(&url).await.batch_execute(DUMP).await.expect("the dump is loaded");
    url
}

/// The record of the schema: step, least step needed, release.
async fn record(url: &str) -> (Option<i32>, i32, Option<String>) {
    let sql = "SELECT step, version, release FROM stable_interfaces.schema_version";
    let row = raw(url).await.query_one(sql, &[]).await.expect("there is one record");
    (row.get(0), row.get(1), row.get(2))
}

async fn refusal(url: &str) -> String {
    let Err(StoreError::Open(text, _)) = PostgresStore::connect(url).await else {
        unreachable!("it must not be opened")
    };
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_of_the_first_release_is_brought_up_to_date_by_many_hosts_at_once_and_has_everything() {
    let url = first_release().await;
    let opening: Vec<_> = (0..8)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move { store_on(&url).await })
        })
        .collect();
    for opened in opening {
        opened.await.expect("the store is opened");
    }
    assert_eq!(record(&url).await, (Some(3), 2, Some(env!("CARGO_PKG_VERSION").to_owned())));
    first_release::is_whole_and_goes_on(&*store_on(&url).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_schema_is_at_the_step_that_an_old_one_is_brought_to() {
    let (old, new) = (first_release().await, fresh_database().await);
    let shape = "SELECT string_agg(line, chr(10) ORDER BY line) FROM ( \
         SELECT format('%s.%s %s %s', table_name, column_name, data_type, is_nullable) \
         FROM information_schema.columns WHERE table_schema = 'stable_interfaces' \
         UNION ALL SELECT p.proname || '(' || pg_get_function_arguments(p.oid) || ')' || md5(p.prosrc) \
         FROM pg_proc p WHERE p.pronamespace = 'stable_interfaces'::regnamespace \
         UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'stable_interfaces') AS lines (line)";
    let mut shapes = Vec::new();
    for url in [old, new] {
        drop(store_on(&url).await);
        shapes.push(raw(&url).await.query_one_scalar::<String, _>(shape, &[]).await.expect("the schema is described"));
    }
    assert!(shapes[0].contains("claim_3(") && shapes[0].contains("claim("), "{}", shapes[0]);
    assert_eq!(shapes[0], shapes[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_one_step_behind_starts_and_writes_beside_one_that_brought_the_schema_up_to_date() {
    let url = first_release().await;
    let store = store_on(&url).await;
    // As a program of step 2 asks: it compares the version with its own step, claims without a word about itself, and writes.
    let old = raw(&url).await;
    let version: i32 = old
        .query_one_scalar("SELECT version FROM stable_interfaces.schema_version", &[])
        .await
        .expect("there is a version");
    assert!(version <= 2, "{version}");
    let claim_as_then =
        "SELECT verdict FROM stable_interfaces.claim_2(9, 'host-b', '{2}', 1024, 1, 60000, true, false, '{}', '{}')";
    assert_eq!(old.query_one_scalar::<String, _>(claim_as_then, &[]).await.expect("it is answered"), "granted");
    let write_as_then = "SELECT taken FROM stable_interfaces.write(9, 0, 1, ARRAY[(2, 1)::stable_interfaces.batch], \
        ARRAY[(2, 'order', 'o-9', 'by-the-old', 1000, 1000, 1, 1, 0, 0, false, NULL, '{}')::stable_interfaces.alarm_put], \
        '{}', '{}', '{}', '{}', '{}', '{}', '{}', 0)";
    assert_eq!(old.query_one_scalar::<i64, _>(write_as_then, &[]).await.expect("it is answered"), 1);

    let page = Page::new(ShardId(2), After::Alarms(None), 10);
    let Rows::Alarms(rows) = store.load(&[page]).await.expect("a load is answered").remove(0).rows else {
        unreachable!("alarms were asked for")
    };
    assert_eq!(rows.iter().map(|row| &*row.id).collect::<Vec<_>>(), ["by-the-old"]);
    let held = store.claim(&claim(10, "host-c", &[2], ClaimKind::Start)).await.expect("the claim is answered").held;
    assert_eq!(held.first().map(|held| &*held.holder), Some("host-b"));
}

/// Brings a schema to a step that this release does not know, as a later one would.
async fn go_ahead(url: &str, step: i32) {
    let add = ["alarm", "inbox", "dead", "storage", "host", "shard", "fence", "fleet"].map(|table| {
        format!("ALTER TABLE stable_interfaces.{table} ADD COLUMN later text NOT NULL DEFAULT 'of a later step'; ")
    });
    let record =
        format!("UPDATE stable_interfaces.schema_version SET step = {step}, version = {}, release = '9.0.0'", step - 1);
    raw(url).await.batch_execute(&(add.concat() + &record)).await.expect("the step is made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_one_step_ahead_is_used_and_stays_at_its_step() {
    let url = first_release().await;
    drop(store_on(&url).await);
    go_ahead(&url, 4).await;
    first_release::is_whole_and_goes_on(&*store_on(&url).await).await;
    assert_eq!(record(&url).await, (Some(4), 3, Some("9.0.0".to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_two_steps_ahead_is_refused_by_number() {
    let url = fresh_database().await;
    drop(store_on(&url).await);
    go_ahead(&url, 5).await;
    let text = refusal(&url).await;
    for part in ["step 5", "release 9.0.0", "step 4", "knows step 3", "run the release that made it"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(record(&url).await, (Some(5), 4, Some("9.0.0".to_owned())), "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_whose_step_no_release_writes_is_refused() {
    for damage in [
        "UPDATE {s} SET version = 0",
        "UPDATE {s} SET step = -1",
        "UPDATE {s} SET version = 5, step = 3",
        "DELETE FROM {s}",
    ] {
        let url = fresh_database().await;
        drop(store_on(&url).await);
        let damage = damage.replace("{s}", "stable_interfaces.schema_version");
        raw(&url).await.batch_execute(&damage).await.expect("it is damaged");
        let text = refusal(&url).await;
        assert!(text.contains("no release writes") && text.contains("restore it"), "{damage}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_does_not_own_an_old_schema_is_told_who_can_bring_it_up_to_date() {
    let url = first_release().await;
    let role = format!("guest_{}", url.bytes().filter(u8::is_ascii_digit).map(char::from).collect::<String>());
    let grants = format!(
        "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA stable_interfaces TO {role}; \
         GRANT ALL ON ALL TABLES IN SCHEMA stable_interfaces TO {role}"
    );
    raw(&url).await.batch_execute(&grants).await.expect("the role is made");
    let as_guest = url.replace("postgres@", &format!("{role}@"));
    let text = refusal(&as_guest).await;
    assert!(text.contains("step 3") && text.contains("owns the schema"), "{text}");
    drop(store_on(&url).await);
    store_on(&as_guest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_know_only_lists_of_hosts_are_refused_once_a_fleet_is_live() {
    let url = fresh_database().await;
    let live = Presence { placement: Placement::Live, ..Presence::default() };
    let wanted = Claim { presence: live, ..claim(1, "host-a", &[0], ClaimKind::Start) };
    store_on(&url).await.claim(&wanted).await.expect("the first host of a live fleet starts");
    assert_eq!(record(&url).await, (Some(3), 3, Some(env!("CARGO_PKG_VERSION").to_owned())));
}
