//! The private servers that other tests, benchmarks and examples start.

#![allow(clippy::disallowed_methods, reason = "real servers live in real time")]

use alarm_backends::testing::servers::{Postgres, Redis, RedisCluster};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

/// Waits until nothing is left of a server that this process no longer holds.
fn until_gone(dir: &str, port: u16) {
    let end = Instant::now() + Duration::from_secs(20);
    while std::fs::exists(dir).expect("a look at the directory") || TcpStream::connect(("127.0.0.1", port)).is_ok() {
        assert!(Instant::now() < end, "{dir} or the server on port {port} is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_killed_postgres_keeps_what_it_acknowledged() {
    let server = Postgres::start();
    server.execute("CREATE TABLE t (n integer)");
    server.execute("INSERT INTO t VALUES (7)");
    server.kill9();
    assert!(TcpStream::connect(("127.0.0.1", server.port())).is_err(), "it is gone");
    server.restart();
    assert_eq!(server.execute("SELECT n FROM t"), "7");
}

#[test]
fn a_killed_redis_keeps_what_it_acknowledged_and_leaves_nothing_when_dropped() {
    let server = Redis::start();
    assert_eq!(server.execute(&["SET", "k", "v"]), "OK");
    server.kill9();
    server.restart();
    assert_eq!(server.execute(&["GET", "k"]), "v");
    let (dir, port) = (server.directory().display().to_string(), server.port());
    drop(server);
    assert!(!std::fs::exists(&dir).expect("a look at the directory"), "{dir} is still there");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "somebody still listens");
}

#[test]
fn a_redis_cluster_spreads_its_keys_over_three_servers() {
    let cluster = RedisCluster::start();
    let first = &cluster.nodes()[0];
    // With -e a MOVED answer is a failure, so only the owner of a key's slot takes it.
    let takes = |key: &str| cluster.nodes().iter().filter(|node| node.takes(&["SET", key, "v"])).count();
    assert!(["a", "b", "c", "d", "e", "f"].iter().all(|key| takes(key) == 1));
    assert!(first.execute(&["CLUSTER", "INFO"]).contains("cluster_size:3"));
}

#[cfg(target_os = "linux")]
#[test]
fn the_port_of_a_server_that_was_killed_is_given_to_nobody_else() {
    // Whoever asks for any port is given none that somebody has; and here nobody can have it by its number, either.
    let take = |port| {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(std::net::SocketAddr::from(([127, 0, 0, 1], port))).map_err(|error| error.kind())
    };
    let server = Redis::start();
    let port = server.port();
    server.kill9();
    assert_eq!(take(port), Err(std::io::ErrorKind::AddrInUse));
    server.restart();
    drop(server);
    take(port).expect("it is free again");
}

/// The program that [`a_program_killed_outright_leaves_no_server`] kills.
#[test]
#[ignore = "started by another test, to be killed"]
fn holds_a_server_when_told_to() {
    if std::env::var_os("HOLD_A_SERVER").is_some() {
        let server = Postgres::start();
        println!("\nholding {} {}", server.directory().display(), server.port());
        std::thread::sleep(Duration::from_secs(60));
    }
}

#[test]
fn a_program_killed_outright_leaves_no_server() {
    use std::io::{BufRead, BufReader};
    let me = std::env::current_exe().expect("a test knows its program");
    let mut program = Command::new(me);
    program.args(["--exact", "holds_a_server_when_told_to", "--ignored", "--nocapture"]).env("HOLD_A_SERVER", "1");
    let mut program = program.stdout(std::process::Stdio::piped()).spawn().expect("the program starts");
    let output = BufReader::new(program.stdout.take().expect("its output is a pipe"));
    let line = output.lines().map_while(Result::ok).find(|line| line.starts_with("holding ")).expect("it says so");
    let [_, dir, port] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
    let port = port.parse().expect("a port");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok(), "the server is there");
    program.kill().expect("SIGKILL is sent");
    program.wait().expect("it is gone");
    until_gone(dir, port);
}
