//! A broker of deliveries that waits for calls of an app and of a partner, on hosts that are killed and deployed over.
//!
//! ```text
//! cargo run --release --example delivery_broker                       # ends 0 only if the ledgers of app and partner agree
//! cargo run --release --example delivery_broker -- --store postgres --hosts 3
//! cargo run --release --example delivery_broker -- --orders 40 --limit-ms 1000
//! ```
//!
//! Read `broker.rs`: it is all that there is to the broker, as two flows, and `service.rs` is how they are served over HTTP. `fakes.rs` is
//! the world around them, and the other files are the proof that they do what they say.

mod broker;
mod drill;
mod fakes;
mod hosts;
mod service;
mod verdict;

// As the other drill has them.
#[allow(dead_code, reason = "hosts of this one neither join nor stay for good")]
#[path = "../webhook_timeout/doors.rs"]
mod doors;
#[allow(dead_code, reason = "here the server is not killed")]
#[path = "../webhook_timeout/server.rs"]
mod server;
#[path = "../webhook_timeout/store.rs"]
mod store;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use callback_flows::UrlKeys;
use examples::{CannotStart, Failed, client, in_one_line, process};
use lexopt::ValueExt;
use reqwest::Url;
use tokio::net::TcpListener;

use crate::broker::{Remote, World};
use crate::store::{Home, Kind, Server};

/// As messages name this program.
const NAME: &str = "delivery_broker";
/// The limit of a call to the app or to the partner, for which a step waits.
const CALL_LIMIT: Duration = Duration::from_millis(500);
/// The secret that the drill's callback URLs are signed with, which needs to be none.
const NO_SECRET: &str = "a drill has no secrets";

const HELP: &str = "\
A broker of deliveries that waits for calls of an app and of a partner, on hosts that are killed and deployed over.

usage: delivery_broker [--store fjall|postgres|redis] [--hosts N] [--orders N] [--kills N] [--limit-ms N] [--seed N] [--quiet]

It plays the app and the partner, and runs the hosts as child processes. Regions open; each has orders; the partner is asked
for somebody who takes an order, within a limit; the app grants it. Hosts are killed with SIGKILL and, once, drained and
started again as version 2 while orders wait. In the end the ledgers of all are held against one another.
  --store S     where flows are kept (default fjall: a directory, for one host alone); a server is private
  --hosts N     how many hosts share the store (default 1); of several, one that is killed stays away until the others have gone on with
                all that it had, for three leases of 2 s
  --orders N    how many orders (default 120, at least 20)
  --kills N     how often a host is killed (default 2)
  --limit-ms N  the time that the partner has for an answer (default 5000, at least 500)
  --seed N      draws what app and partner do with each order (default 1)
  --quiet       print only what went wrong, and the last line
Its exit status is 0 if every order was decided once and rightly, 1 if not, 2 if it could not be run as asked.
";

/// The options of a host, as the drill starts it.
#[derive(Debug)]
struct Serving {
    home: Home,
    listen: SocketAddr,
    world: Url,
    limit: Duration,
    version: u32,
}

#[derive(Debug)]
enum Command {
    Help,
    Drill(drill::Options),
    Serve(Serving),
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, lexopt::Error> {
    use lexopt::Arg::{Long, Short, Value};
    let mut args = lexopt::Parser::from_args(args);
    let (mut orders, mut kills, mut limit, mut seed, mut quiet) = (120, 2, 5_000, 1, false);
    let (mut store, mut hosts, mut is_host) = (Kind::Fjall, 1, false);
    let (mut data, mut url, mut listen, mut world, mut version) = (None, None, None, None, 1);
    while let Some(arg) = args.next()? {
        match arg {
            Value(word) if word == "serve" => is_host = true,
            Long("help") | Short('h') => return Ok(Command::Help),
            Long("store") => store = args.value()?.parse()?,
            Long("hosts") => hosts = args.value()?.parse()?,
            Long("orders") => orders = args.value()?.parse()?,
            Long("kills") => kills = args.value()?.parse()?,
            Long("limit-ms") => limit = args.value()?.parse()?,
            Long("seed") => seed = args.value()?.parse()?,
            Long("quiet") | Short('q') => quiet = true,
            Long("data") if is_host => data = Some(args.value()?.into()),
            Long("url") if is_host => url = Some(args.value()?.string()?),
            Long("listen") if is_host => listen = Some(args.value()?.parse()?),
            Long("world") if is_host => world = Some(args.value()?.parse()?),
            Long("version") if is_host => version = args.value()?.parse()?,
            Long("until-stdin-ends") if is_host => {}
            _ => return Err(arg.unexpected()),
        }
    }
    if orders < 20 || hosts == 0 || limit < 500 {
        return Err("there are at least --orders 20, --hosts 1 and --limit-ms 500".into());
    }
    let limit = Duration::from_millis(limit);
    if is_host {
        let home = match (data, url) {
            (Some(data), None) => Home::Directory(data),
            (None, Some(url)) => Home::Server(Server { kind: store, url, space: NAME.to_owned(), name: None }),
            _ => return Err("a host needs --data, or --url".into()),
        };
        let listen = listen.ok_or("a host needs --listen")?;
        let world = world.ok_or("a host needs --world")?;
        return Ok(Command::Serve(Serving { home, listen, world, limit, version }));
    }
    if store == Kind::Fjall && hosts > 1 {
        let why = "--store fjall has one host, since only one process can open its directory; \
                   more hosts need --store postgres or --store redis";
        return Err(why.into());
    }
    Ok(Command::Drill(drill::Options { orders, kills, limit, seed, quiet, store, hosts }))
}

async fn serve(serving: Serving) -> Result<(), Failed> {
    let Serving { home, listen, world, limit, version } = serving;
    let cannot_listen = |error| CannotStart::new(format!("cannot listen on {listen}"), error);
    let listener = TcpListener::bind(listen).await.map_err(cannot_listen)?;
    let host = home.host(&listener.local_addr().map_err(cannot_listen)?.to_string()).await?;
    let remote = |path: &str| {
        let base = world.join(path).map_err(|e| CannotStart::new("there is no such world", e))?;
        Ok::<_, CannotStart>(Remote { http: client(CALL_LIMIT), base })
    };
    let world = World { app: remote("app/")?, partner: remote("partner/")?, limit };
    let keys = UrlKeys::new("drill", NO_SECRET).map_err(|e| CannotStart::new("cannot sign URLs", e))?;
    Ok(service::serve(host, listener, version, world, keys, process::asked_to_stop(true)).await?)
}

#[tokio::main]
async fn main() -> ExitCode {
    match parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Ok(Command::Drill(options)) => run_drill(options).await,
        Ok(Command::Serve(serving)) => {
            // What a drill does to its hosts is no news to whoever runs the drill.
            let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "error".into());
            tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter).init();
            match serve(serving).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => error.report(NAME),
            }
        }
        Err(error) => CannotStart::new("bad arguments (--help explains them)", error).report(NAME),
    }
}

async fn run_drill(options: drill::Options) -> ExitCode {
    let data = match tempfile::Builder::new().prefix("delivery_broker-").tempdir() {
        Ok(data) => data,
        Err(error) => return CannotStart::new("cannot make a temporary directory", error).report(NAME),
    };
    let report = tokio::select! { biased;
        // The children end with us, and the directory goes with `data`.
        () = process::asked_to_stop(false) => {
            eprintln!("{NAME}: interrupted");
            return ExitCode::FAILURE;
        }
        report = drill::run(&options, data.path()) => report,
    };
    match report {
        Ok(report) => {
            if !options.quiet {
                println!("\n{}", report.table());
            }
            print!("{}", report.faults());
            println!("{report}");
            if report.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("{NAME}: {}", in_one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())
    }

    fn drill(line: &str) -> drill::Options {
        match parsed(line) {
            Ok(Command::Drill(options)) => options,
            other => unreachable!("{line} is {other:?}"),
        }
    }

    #[test]
    fn no_arguments_are_the_drill_with_its_defaults() {
        let options = drill("");
        assert_eq!((options.orders, options.kills, options.hosts, options.store), (120, 2, 1, Kind::Fjall));
        let options = drill("--store redis --hosts 3 --limit-ms 700 -q");
        assert_eq!((options.limit, options.hosts, options.store), (Duration::from_millis(700), 3, Kind::Redis));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["--order 5", "--orders", "--orders 3", "--hosts 3", "--limit-ms 5", "serve", "--version 2"] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
