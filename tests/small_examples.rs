//! The small examples as a user runs them: each ends by itself with exit status 0, and a last line that is its promise.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a program runs in real time")]

use std::time::Duration;

use alarm_backends::testing::servers::Postgres;
use system_tests::example::Example;

static GREETER: Example = Example::new("greeter");
static LEDGER: Example = Example::new("ledger");
static TRANSFER: Example = Example::new("transfer");
static SAGA: Example = Example::new("saga");
static DESK: Example = Example::new("desk");
static WEBHOOK_SERVICE: Example = Example::new("webhook_service");
static WEBHOOK_FLOW: Example = Example::new("webhook_flow");
static CHAT_SERVICE: Example = Example::new("chat_service");

/// Runs an example to its end; it must be a good one, with this last line.
#[track_caller]
fn assert_ends_with(example: &Example, args: &[&str], last_line: &str) {
    let output = example.run(args);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(said.lines().last(), Some(last_line), "{output:?}");
}

const LEDGER_ENDS: &str = "4 bookings, 1 refused: the balance is 30, and so is the sum of 3 rows";
const TRANSFER_ENDS: &str = "transfers over a kill: all balances are right, the sum is 0";
const DESK_ENDS: &str = "3 parcels: 1 given up, requeued and delivered; 0 left";

#[test]
fn the_ledger_and_the_balance_agree_after_a_refused_booking() {
    assert_ends_with(&LEDGER, &[], LEDGER_ENDS);
}

#[test]
fn transfers_over_a_kill_leave_every_balance_right() {
    assert_ends_with(&TRANSFER, &[], TRANSFER_ENDS);
}

#[test]
fn trips_over_three_kills_are_booked_as_a_whole_or_undone() {
    let output = SAGA.run(&[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let last = said.lines().last().unwrap_or_default();
    let counts: Vec<u32> = last.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
    let (booked, undone) = (counts[1], counts[2]);
    let expected =
        format!("40 trips: {booked} booked, {undone} undone, 0 half done, 0 charged twice; host killed 3 times");
    assert_eq!(last, expected);
    // 19 find a room, the money and a ticket; of these a kill may cut off the charge of a few before it is made.
    assert!(booked + undone == 40 && (8..=19).contains(&booked), "{last}");
}

#[test]
fn the_desk_has_what_was_given_up_tried_again() {
    assert_ends_with(&DESK, &[], DESK_ENDS);
}

#[test]
fn a_server_of_somebody_elses_is_used_and_each_run_keeps_to_itself() {
    let server = Postgres::start();
    let url = server.url("postgres");
    for _ in 0..2 {
        assert_ends_with(&LEDGER, &["--url", &url], LEDGER_ENDS);
        assert_ends_with(&TRANSFER, &["--url", &url], TRANSFER_ENDS);
        assert_ends_with(&DESK, &["--url", &url], DESK_ENDS);
    }
    let runs = server.execute("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'example\\_%'");
    assert_eq!(runs, "6", "a schema for each run");
    assert_eq!(server.execute("SELECT count(DISTINCT account) FROM example_ledger"), "2");
}

#[test]
fn the_greeter_greets_also_after_a_kill_and_ends_when_it_is_interrupted() {
    let directory = tempfile::tempdir().unwrap();
    let mut killed = GREETER.start(directory.path(), &[]);
    assert_eq!(killed.next_line(), "asked 1 times");
    drop(killed);
    let mut greeter = GREETER.start(directory.path(), &[]);
    assert_eq!(greeter.next_line(), "asked 2 times");
    assert_eq!(greeter.next_line(), "hello to alice after 2 times");
    greeter.interrupt();
    assert_eq!(greeter.ends_within(Duration::from_secs(60)), Some(0));
    assert_eq!(greeter.next_line(), "", "the greeting was its last line");
}

#[test]
fn wrong_arguments_are_one_line_and_exit_status_2() {
    for example in [&LEDGER, &TRANSFER, &DESK] {
        example.assert_refuses(&["--ulr", "x"], "--ulr");
        example.assert_refuses(&["--url"], "--url");
        example.assert_refuses(&["--url", "nowhere"], "cannot open the store");
    }
    SAGA.assert_refuses(&["alice"], "it takes none");
    GREETER.assert_refuses(&["alice"], "alice");
    WEBHOOK_SERVICE.assert_refuses(&[], "DIR ADDRESS");
    WEBHOOK_FLOW.assert_refuses(&["data"], "DIR ADDRESS");
    CHAT_SERVICE.assert_refuses(&["data"], "DIR ADDRESS");
}

#[test]
fn the_services_to_copy_serve_until_they_are_asked_to_stop() {
    for (example, path) in [(&WEBHOOK_SERVICE, "orders"), (&WEBHOOK_FLOW, "flows"), (&CHAT_SERVICE, "rooms")] {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join(path).display().to_string();
        let mut serving = example.serve_with(&[&data, "127.0.0.1:0"]);
        assert!(std::net::TcpStream::connect(serving.address()).is_ok());
        serving.interrupt();
        assert_eq!(serving.ends_within(Duration::from_secs(60)), Some(0));
    }
}
