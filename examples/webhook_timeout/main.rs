//! Orders that wait for a webhook, with a timeout, through hosts that are killed again and again.
//!
//! ```text
//! cargo run --release --example webhook_timeout                       # the drill: ends 0 only if nothing was lost
//! cargo run --release --example webhook_timeout -- --store postgres --hosts 3
//! cargo run --release --example webhook_timeout -- --flow             # the same service, written as a flow
//! cargo run --release --example webhook_timeout -- serve --data DIR --listen 127.0.0.1:8080
//! ```
//!
//! The drill starts a partner service in this process and each host as a child. Orders arrive by HTTP; each sets a durable
//! timeout, then tells the partner where to call back; the partner does so in time, late, twice or never. Meanwhile hosts
//! are killed with SIGKILL and started again; so is the server that a fleet keeps its orders in. In the end the partner's
//! ledger is held against what the hosts say of each order.
//!
//! Read `service.rs` for how such a service is written, and copy it: it is a program of its own (`--example webhook_service`).
//! `flow_service.rs` is its twin, written as a flow (`--example webhook_flow`), and the drill proves either in the same way.
//! `store.rs` shows how a fleet opens its store; the other files are the proof that it works.

mod doors;
mod drill;
mod flow_service;
mod host;
mod partner;
mod server;
mod service;
mod store;
mod verdict;

use std::ffi::OsString;
use std::process::ExitCode;

use examples::drill::log_filter;
use examples::{CannotStart, in_one_line, process};
use lexopt::ValueExt;

use crate::store::{Home, Kind, Server};

/// As messages name this program.
const NAME: &str = "webhook_timeout";

const HELP: &str = "\
Orders that wait for a webhook, with a timeout, through hosts that are killed again and again.

usage: webhook_timeout [--store fjall|postgres|redis] [--hosts N] [--url URL] [--orders N] [--kills N] [--seed N] [--flow] [--quiet]
       webhook_timeout serve --data DIR --listen ADDRESS [--partner URL] [--flow]
       webhook_timeout serve --store postgres|redis --url URL --listen ADDRESS [--name NAME] [--partner URL] [--flow]

The first form is the drill. It starts a partner service and, as child processes, the hosts; sends them orders; kills
hosts with SIGKILL while orders wait, and compares what the partner saw with what the hosts say of each order.
  --store S     where orders are kept (default fjall: a directory, for one host alone)
  --hosts N     how many hosts share the store (default 1); the orders are spread over them, one more host joins on the way and
                one is drained, and who is killed stays away until the others have its orders
  --url URL     a server to use, which is not killed; without it the drill starts one of its own and kills that as well
  --orders N    how many orders (default 200; with several hosts 190 for each kill of one, 25 for each of the server and 210 more)
  --kills N     how often a host is killed (default 3, with a server 6, with several hosts 4); the server is killed a third as often
  --seed N      draws what the partner does with each order and when the kills happen (default 1)
  --flow        the service is the one that is written as a flow
  --quiet       print only what went wrong, and the last line
Its exit status is 0 if every order was decided once and rightly, 1 if not, 2 if it could not be run as asked.

The other forms run one host.
  --data DIR    where it keeps its orders; made if missing; one process at a time
  --store S, --url URL  the server it keeps its orders in, with the other hosts
  --name NAME           its name among them, the same at each start (default: the address it listens on)
  --space NAME          the schema, or what keys begin with, in that server (default webhook_timeout)
  --listen ADDRESS    such as 127.0.0.1:8080
  --partner URL       where to POST {\"order\": .., \"callback\": ..} for each new order; nobody is told without it
  --public URL        where the partner reaches the service (default: the address it listens on)
  --flow              serve with the service that is written as a flow
  --until-stdin-ends  stop when standard input ends, not only on SIGINT and SIGTERM
A host ends with status 0 when it was asked to, 2 if it could not start, and 1 if it ended by itself (its store has lost
data, another process took its place): start it anew.
";

/// A command line that was understood.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Help,
    Drill(drill::Options),
    Serve(Box<host::Options>),
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, lexopt::Error> {
    use lexopt::Arg::{Long, Short, Value};
    let mut args = lexopt::Parser::from_args(args);
    let (mut orders, mut kills, mut seed, mut quiet) = (None, None, 1, false);
    let (mut store, mut hosts, mut url, mut is_flow) = (Kind::Fjall, 1, None, false);
    let mut is_first = true;
    while let Some(arg) = args.next()? {
        match arg {
            Value(word) if is_first && word == "serve" => return parse_serve(args),
            Long("help") | Short('h') => return Ok(Command::Help),
            Long("store") => store = args.value()?.parse()?,
            Long("hosts") => hosts = args.value()?.parse()?,
            Long("url") => url = Some(args.value()?.string()?),
            Long("orders") => orders = Some(args.value()?.parse()?),
            Long("kills") => kills = Some(args.value()?.parse()?),
            Long("seed") => seed = args.value()?.parse()?,
            Long("flow") => is_flow = true,
            Long("quiet") | Short('q') => quiet = true,
            _ => return Err(arg.unexpected()),
        }
        is_first = false;
    }
    // Those of several hosts take their time.
    let kills = kills.unwrap_or(if store == Kind::Fjall {
        3
    } else if hosts > 1 {
        4
    } else {
        6
    });
    let mut drill = drill::Options { orders: 200, kills, seed, quiet, store, hosts, url, is_flow };
    drill.orders = orders.unwrap_or_else(|| if drill.is_fleet() { drill.orders_needed() + 150 } else { 200 });
    if drill.orders == 0 || drill.hosts == 0 {
        return Err("--orders and --hosts must be at least 1".into());
    }
    if drill.store == Kind::Fjall && drill.hosts > 1 {
        let why = "--store fjall has one host, since only one process can open its directory; \
                   more hosts need --store postgres or --store redis";
        return Err(why.into());
    }
    if drill.store == Kind::Fjall && drill.url.is_some() {
        return Err("--store fjall has no server, so there is no --url".into());
    }
    let needed = drill.orders_needed();
    if drill.orders < needed {
        let why = format!("--kills {} needs --orders {needed} or more, so that {} wait", drill.kills, drill::WAITING);
        return Err(why.into());
    }
    Ok(Command::Drill(drill))
}

fn parse_serve(mut args: lexopt::Parser) -> Result<Command, lexopt::Error> {
    use lexopt::Arg::{Long, Short};
    let (mut data, mut listen, mut partner, mut is_flow, mut until_stdin_ends) = (None, None, None, false, false);
    let (mut store, mut url, mut space) = (Kind::Fjall, None, "webhook_timeout".to_owned());
    let (mut name, mut public) = (None, None);
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") | Short('h') => return Ok(Command::Help),
            Long("data") => data = Some(args.value()?.into()),
            Long("store") => store = args.value()?.parse()?,
            Long("url") => url = Some(args.value()?.string()?),
            Long("name") => name = Some(args.value()?.string()?),
            Long("space") => space = args.value()?.string()?,
            Long("listen") => listen = Some(args.value()?.parse()?),
            Long("partner") => partner = Some(args.value()?.parse()?),
            Long("public") => public = Some(args.value()?.parse()?),
            Long("flow") => is_flow = true,
            Long("until-stdin-ends") => until_stdin_ends = true,
            _ => return Err(arg.unexpected()),
        }
    }
    let home = match (store, url) {
        (Kind::Fjall, None) if name.is_none() => {
            Home::Directory(data.ok_or("serve needs --data DIR, or --store with a server")?)
        }
        (Kind::Fjall, _) => return Err("--url and --name need --store postgres or --store redis".into()),
        (_, Some(url)) if data.is_none() => Home::Server(Server { kind: store, url, space, name }),
        _ => return Err("serve with a server needs --url, and no --data".into()),
    };
    let listen = listen.ok_or("serve needs --listen ADDRESS")?;
    Ok(Command::Serve(Box::new(host::Options { home, listen, partner, public, is_flow, until_stdin_ends })))
}

#[tokio::main]
async fn main() -> ExitCode {
    match parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Ok(Command::Drill(options)) => run_drill(options).await,
        Ok(Command::Serve(options)) => {
            // What a drill does to its hosts is no news to whoever runs the drill.
            let level = if options.until_stdin_ends { "error" } else { "warn" };
            tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(log_filter(level)).init();
            match host::serve(*options).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => error.report(NAME),
            }
        }
        Err(error) => CannotStart::new("bad arguments (--help explains them)", error).report(NAME),
    }
}

async fn run_drill(options: drill::Options) -> ExitCode {
    let data = match tempfile::Builder::new().prefix("webhook_timeout-").tempdir() {
        Ok(data) => data,
        Err(error) => return CannotStart::new("cannot make a temporary directory", error).report(NAME),
    };
    let report = tokio::select! { biased;
        // The child ends with us, and the directory goes with `data`.
        () = process::asked_to_stop(false) => {
            eprintln!("{NAME}: interrupted");
            return ExitCode::FAILURE;
        }
        report = drill::run(&options, data.path()) => report,
    };
    let right = match &report {
        Ok(report) => {
            if !options.quiet {
                print!("\n{}\n{}{}", report.table(), report.breakage(), report.lateness());
            }
            print!("{}", report.faults());
            report.is_right()
        }
        Err(error) => {
            eprintln!("{NAME}: {}", in_one_line(error.as_ref()));
            false
        }
    };
    if !right && options.store == Kind::Fjall {
        println!("the host's data is kept in {}", data.keep().display());
    }
    if let Ok(report) = report {
        println!("{report}");
    }
    if right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())
    }

    fn drill() -> drill::Options {
        drill::Options {
            orders: 200,
            kills: 3,
            seed: 1,
            quiet: false,
            store: Kind::Fjall,
            hosts: 1,
            url: None,
            is_flow: false,
        }
    }

    #[test]
    fn no_arguments_are_the_drill_with_its_defaults() {
        assert_eq!(parsed(""), Ok(Command::Drill(drill())));
        let given = drill::Options { orders: 100, kills: 2, seed: 9, quiet: true, ..drill() };
        assert_eq!(parsed("--orders 100 --kills=2 --seed 9 -q"), Ok(Command::Drill(given)));
        assert_eq!(parsed("--flow"), Ok(Command::Drill(drill::Options { is_flow: true, ..drill() })));
    }

    #[test]
    fn a_fleets_store_is_killed_unless_it_is_somebody_elses() {
        let fleet = drill::Options { orders: 1_020, kills: 4, store: Kind::Postgres, hosts: 3, ..drill() };
        assert_eq!(fleet.all_kills(), verdict::Kills { of_hosts: 4, of_store: Some(2) });
        assert_eq!(parsed("--store postgres --hosts 3"), Ok(Command::Drill(fleet)));
        let url = Some("redis://there".to_owned());
        let theirs = drill::Options { orders: 590, kills: 2, store: Kind::Redis, hosts: 2, url, ..drill() };
        assert_eq!(theirs.all_kills(), verdict::Kills { of_hosts: 2, of_store: None });
        assert_eq!(parsed("--store redis --hosts 2 --url redis://there --kills 2"), Ok(Command::Drill(theirs)));
    }

    #[test]
    fn a_directory_is_for_one_host_and_the_message_says_why() {
        let why = parsed("--store fjall --hosts 3").expect_err("refused");
        assert!(why.contains("only one process") && why.contains("--store postgres"), "{why}");
        assert!(parsed("--hosts 2").is_err() && parsed("--url x").is_err() && parsed("--store sqlite").is_err());
    }

    #[test]
    fn serve_needs_an_address_and_a_directory_or_a_server() {
        let options = |home| {
            Box::new(host::Options {
                home,
                listen: ([127, 0, 0, 1], 80).into(),
                partner: "http://p/orders".parse().ok(),
                public: "http://front".parse().ok(),
                is_flow: false,
                until_stdin_ends: false,
            })
        };
        let rest = "--listen 127.0.0.1:80 --partner http://p/orders --public http://front";
        assert_eq!(parsed(&format!("serve --data d {rest}")), Ok(Command::Serve(options(Home::Directory("d".into())))));
        for (given, name) in [("", None), ("--name host-1", Some("host-1".to_owned()))] {
            let space = "webhook_timeout".to_owned();
            let server = Server { kind: Kind::Redis, url: "redis://r".to_owned(), space, name };
            assert_eq!(
                parsed(&format!("serve --store redis --url redis://r {given} {rest}")),
                Ok(Command::Serve(options(Home::Server(server))))
            );
        }
        assert!(parsed("serve --listen 127.0.0.1:80").is_err_and(|e| e.contains("--data")));
        assert!(parsed("serve --data d").is_err_and(|e| e.contains("--listen")));
        assert!(parsed("serve --store redis --listen 127.0.0.1:80").is_err_and(|e| e.contains("--url")));
    }

    #[test]
    fn nonsense_is_refused_and_help_is_given() {
        for line in ["--order 5", "--orders", "--orders x", "--orders 0", "--orders 99 --kills 2", "drill", "serve --x"]
        {
            assert!(parsed(line).is_err(), "{line}");
        }
        assert_eq!(parsed("serve --help"), Ok(Command::Help));
        assert_eq!(parsed("-h"), Ok(Command::Help));
    }
}
