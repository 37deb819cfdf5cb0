//! The example `payments` as a user runs it: its exit status and its last line are its promise.
//!
//! `tests/run payments` kills hosts more often than the example does by itself, on Fjall and on Postgres; `KILLS=n` sets how often, `SEED=n`
//! repeats the draws.

use system_tests::example::Example;
use system_tests::number;

static PAYMENTS: Example = Example::new("payments");

/// Runs the drill with so many kills, or some with `QUICK`, and enough orders for them; its last line must say that all is well. Returns
/// all that it said.
#[track_caller]
fn assert_all_is_well(kills: u64, args: &[&str]) -> String {
    let kills = number("KILLS", if std::env::var_os("QUICK").is_some() { kills.min(2) } else { kills });
    let orders = kills * 20;
    let (orders_given, kills_given, seed) = (orders.to_string(), kills.to_string(), number("SEED", 3).to_string());
    let all = [&["--orders", &orders_given, "--kills", &kills_given, "--seed", &seed], args].concat();
    let output = PAYMENTS.run(&all);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = said.lines().last().unwrap_or_default();
    let counts: Vec<u64> = last.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
    let [paid, declined, refunded] = [1, 2, 3].map(|at| counts.get(at).copied().unwrap_or(0));
    let expected = format!(
        "{orders} payments: {paid} paid, {declined} declined, {refunded} refunded; 0 charged twice, 0 lost, \
         0 answers executed as code; host killed {kills} times"
    );
    assert_eq!(last, expected, "{all:?}: {said}");
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(paid + declined + refunded, orders);
    // Of each twenty, four cards are declined, and three orders are given back. So are those for which a host was away for too long.
    assert_eq!(declined, orders / 5, "{said}");
    assert!(refunded >= orders * 3 / 20 && paid > orders / 4, "{said}");
    println!("{last}");
    said
}

#[test]
fn a_host_on_fjall_that_is_killed_while_calls_are_in_flight_charges_each_customer_once() {
    let said = assert_all_is_well(12, &[]);
    let ran = |style: &str, edition: &str| {
        let is_of = |line: &str| {
            let mut words = line.split_whitespace();
            line.starts_with("order-") && words.nth(1) == Some(style) && words.next() == Some(edition)
        };
        said.lines().any(is_of)
    };
    // The script that goes from top to bottom was changed on the way; whoever had begun stayed with the old one.
    for (style, edition) in [("linear", "1"), ("linear", "2"), ("answers", "1")] {
        assert!(ran(style, edition), "no order ran edition {edition} of a {style} script: {said}");
    }
}

#[test]
fn a_fleet_on_postgres_that_is_killed_while_calls_are_in_flight_charges_each_customer_once() {
    assert_all_is_well(12, &["--quiet", "--store", "postgres", "--hosts", "2"]);
}

#[test]
fn a_fleet_on_redis_that_is_killed_while_calls_are_in_flight_charges_each_customer_once() {
    assert_all_is_well(1, &["--quiet", "--store", "redis", "--hosts", "2"]);
}

#[test]
fn a_host_that_sends_another_key_with_each_attempt_is_found_to_charge_customers_twice() {
    let output = PAYMENTS.run(&["--broken", "--orders", "40", "--kills", "1", "--seed", "1", "--quiet"]);
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    let twice = last.split("; ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    assert!(twice.is_some_and(|twice| twice > 0) && output.status.code() == Some(1), "{said}");
    println!("with another key for each attempt: {last}");
}

#[test]
fn bad_arguments_are_refused() {
    PAYMENTS.assert_refuses(&["--store", "fjall", "--hosts", "3"], "only one process can open its directory");
    PAYMENTS.assert_refuses(&["--ordres", "50"], "--ordres");
    PAYMENTS.assert_refuses(&["--orders", "3"], "--orders 20");
    PAYMENTS.assert_refuses(&["--stripe-url", "https://api.stripe.com"], "STRIPE_API_KEY");
    PAYMENTS.assert_refuses(&["serve"], "--data");
}
