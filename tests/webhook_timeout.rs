//! The example `webhook_timeout` as a user runs it: its exit status and its last line are its promise.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use alarm_backends::testing::servers::Redis;
use system_tests::example::Example;

static WEBHOOK: Example = Example::new("webhook_timeout");

/// Serving that ends by itself, should it wrongly start: [`Example::run`] gives it no standard input.
fn serve<'a>(data: &'a str, listen: &'a str) -> [&'a str; 6] {
    ["serve", "--until-stdin-ends", "--data", data, "--listen", listen]
}

#[test]
fn a_drill_with_kills_decides_every_order_once_and_loses_none() {
    let output = WEBHOOK.run(&["--orders", "100", "--kills", "2", "--seed", "7"]);
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    let counts: Vec<u32> = last.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
    let (accepted, expired) = (counts.get(1).copied().unwrap_or(0), counts.get(2).copied().unwrap_or(0));
    assert_eq!(
        last,
        format!("100 orders: {accepted} accepted, {expired} expired, 0 lost, 0 decided twice; host killed 2 times"),
        "{said}"
    );
    assert_eq!(accepted + expired, 100);
    // 60 are called back in time. Kills make some of these calls late, but hardly two thirds; and they make none early.
    assert!((20..=60).contains(&accepted), "{said}");
    assert_eq!(output.status.code(), Some(0), "{said}");
    let line = |order: u32| said.lines().any(|line| line.starts_with(&format!("order-{order:04} ")));
    assert!((0..100).all(line), "the table names each order: {said}");
}

#[test]
fn the_same_service_written_as_a_flow_decides_every_order_once_and_loses_none() {
    let output = WEBHOOK.run(&["--flow", "--orders", "100", "--kills", "2", "--seed", "7"]);
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    let counts: Vec<u32> = last.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
    let (accepted, expired) = (counts.get(1).copied().unwrap_or(0), counts.get(2).copied().unwrap_or(0));
    assert_eq!(
        last,
        format!("100 orders: {accepted} accepted, {expired} expired, 0 lost, 0 decided twice; host killed 2 times"),
        "{said}"
    );
    assert_eq!(accepted + expired, 100);
    assert!((20..=80).contains(&accepted), "{said}");
    assert_eq!(output.status.code(), Some(0), "{said}");
}

#[test]
fn a_fleet_of_flows_on_postgres_decides_every_order_once_while_hosts_and_server_are_killed() {
    assert_fleet(&["--flow", "--store", "postgres", "--seed", "5"], true);
}

/// Runs the drill of three hosts on a server, which is the drill's own or not; its last line must say that all is well.
#[track_caller]
fn assert_fleet(args: &[&str], is_own_server: bool) {
    let (kills, orders) = if std::env::var_os("QUICK").is_some() { ("1", 400) } else { ("2", 650) };
    let output = WEBHOOK.run(&[args, &["--hosts", "3", "--orders", &orders.to_string(), "--kills", kills]].concat());
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    let hosts = format!(
        " expired, 0 lost, 0 decided twice; hosts killed {kills} times and not restarted for three leases, 1 added, 1 drained; 0 of "
    );
    assert!(last.starts_with(&format!("{orders} orders: ")) && last.contains(&hosts), "{said}");
    let (_, at_staying) = last.split_once(&hosts).expect("it says so");
    let (requests, rest) =
        at_staying.split_once(" requests refused or cut off at the door that stays").unwrap_or_default();
    // Each order is placed and looked at, and three of four requests come in there.
    assert!(requests.parse::<usize>().is_ok_and(|requests| requests >= orders), "{said}");
    assert_eq!(rest, if is_own_server { "; store killed 1 times" } else { "" });
    assert_eq!(output.status.code(), Some(0), "{said}");
}

#[test]
fn a_fleet_on_postgres_decides_every_order_once_while_hosts_and_server_are_killed() {
    assert_fleet(&["--store", "postgres", "--seed", "3"], true);
}

#[test]
fn a_fleet_on_redis_decides_every_order_once_while_hosts_and_server_are_killed() {
    assert_fleet(&["--store", "redis", "--seed", "4"], true);
}

#[test]
fn a_server_that_the_drill_was_given_is_used_and_left_alone() {
    let server = Redis::start();
    assert_fleet(&["--store", "redis", "--url", &server.url()], false);
    assert!(server.execute(&["DBSIZE"]).parse::<u64>().is_ok_and(|keys| keys > 0), "it was used");
    assert!(server.execute(&["INFO", "clients"]).contains("connected_clients:1\r"), "and is left by all hosts");
}

#[test]
fn a_host_whose_store_has_lost_its_data_ends_with_a_status_that_has_it_started_anew() {
    let server = Redis::start();
    let args = ["serve", "--store", "redis", "--url", &server.url(), "--name", "host-0"];
    let mut serving = WEBHOOK.serve(&args);
    assert_eq!(serving.ends_within(Duration::from_millis(500)), None, "all is well");
    server.execute(&["FLUSHALL"]);
    assert_eq!(
        serving.ends_within(Duration::from_secs(60)),
        Some(1),
        "it neither serves on nor ends as if all were well"
    );
    let anew = WEBHOOK.serve(&args);
    assert!(exchange(anew.address(), "GET", "/orders/a").starts_with("HTTP/1.1 404 "), "it serves with what there is");
}

/// One exchange, byte for byte: nothing normalises the path on its way.
fn exchange(address: &str, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers in UTF-8");
    answer
}

#[test]
fn the_callback_of_an_order_reaches_that_order_whatever_its_id() {
    let data = tempfile::tempdir().expect("a directory");
    let serving = WEBHOOK.serve(&["serve", "--data", &data.path().join("orders").display().to_string()]);
    let ids = [".", "..", "a\r", "a\n", "a\t", "a", "a/b", "a%2Fb", "%", "?", "#", "-", "a-b", "日本 é"];
    let path = |id: &str| {
        let bytes = id.bytes().map(|byte| format!("%{byte:02X}"));
        format!("/orders/{}", bytes.collect::<String>())
    };
    let mut callbacks = Vec::new();
    for id in ids {
        let placed = exchange(serving.address(), "POST", &path(id));
        assert!(placed.starts_with("HTTP/1.1 200 "), "{id:?}: {placed}");
        let body = placed.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let placed: serde_json::Value = serde_json::from_str(body).expect("JSON");
        callbacks.push(placed["callback"].as_str().expect("a URL").to_owned());
    }
    for (id, callback) in ids.iter().zip(callbacks) {
        let before = exchange(serving.address(), "GET", &path(id));
        assert!(before.ends_with(r#""decisions":[]}"#), "{id:?}: {before}");
        let path_of = callback.strip_prefix("http://").and_then(|rest| rest.strip_prefix(serving.address()));
        let called = exchange(serving.address(), "POST", path_of.expect("a URL of this host"));
        assert!(called.ends_with("\r\n\r\naccepted\n"), "{id:?}: {callback}: {called}");
        let after = exchange(serving.address(), "GET", &path(id));
        assert!(after.contains(r#""outcome":"accepted""#), "{id:?}: {after}");
    }
}

#[test]
fn bad_arguments_are_refused() {
    WEBHOOK.assert_refuses(&["--store", "fjall", "--hosts", "3"], "only one process can open its directory");
    WEBHOOK.assert_refuses(&["--ordres", "5"], "--ordres");
    WEBHOOK.assert_refuses(&["--orders", "many"], "many");
    WEBHOOK.assert_refuses(&["--orders", "99", "--kills", "2"], "needs --orders 100");
    WEBHOOK.assert_refuses(&["serve"], "--data");
    WEBHOOK.assert_refuses(&["serve", "--data", "x", "--listen", "here"], "here");
}

#[test]
fn a_port_in_use_is_refused() {
    let data = tempfile::tempdir().expect("a directory");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    WEBHOOK.assert_refuses(&serve(&data.path().display().to_string(), &address), &address);
}

#[test]
fn a_directory_that_another_process_holds_or_that_is_none_is_refused() {
    let data = tempfile::tempdir().expect("a directory");
    let orders = data.path().join("orders").display().to_string();
    let serving = WEBHOOK.serve(&["serve", "--data", &orders]);
    WEBHOOK.assert_refuses(&serve(&orders, "127.0.0.1:0"), &orders);
    drop(serving);
    // A process that was killed holds nothing back.
    drop(WEBHOOK.serve(&["serve", "--data", &orders]));

    let file = tempfile::NamedTempFile::new().expect("a file");
    let file = file.path().display().to_string();
    WEBHOOK.assert_refuses(&serve(&file, "127.0.0.1:0"), &file);
}

#[test]
fn a_host_ends_when_its_parent_is_gone_and_says_nothing_of_it() {
    let data = tempfile::tempdir().expect("a directory");
    let orders = data.path().join("orders").display().to_string();
    // Standard input that ends at once is what is left of a parent that died.
    let ended = WEBHOOK.run(&serve(&orders, "127.0.0.1:0"));
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
}
