//! Commands that are accepted now and finished later, and every way in which a client may learn of their outcome; with a page.
//!
//! ```text
//! cargo run --release --example async_command                  # then open http://127.0.0.1:8080/, or copy a line that it prints
//! cargo run --release --example async_command -- --self-test   # ends 0 only if each way works, over kills too
//! cargo run --release --example async_command -- --self-test --store postgres --hosts 3
//! ```
//!
//! A client asks for a location under an ID of its own, and is answered 202: it is durable, and will be made or refused. Meanwhile it
//! may poll, wait, be told by an event, or be told of failures alone; its process and this one may die.
//!
//! Read `location.rs` for the flow that makes a location, `world.rs` for those whom it asks, and `web.rs` for the doors. The page is in
//! `page`, the proof in `self_test`.

mod location;
mod options;
mod pages;
mod self_test;
mod web;
mod world;

// As the drills have them.
#[allow(dead_code, reason = "those that were killed stay away")]
#[path = "../delivery_broker/hosts.rs"]
mod hosts;
#[allow(dead_code, reason = "here the server is not killed")]
#[path = "../webhook_timeout/server.rs"]
mod server;
#[path = "../webhook_timeout/store.rs"]
mod store;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use examples::drill::{log_filter, self_test as prove};
use examples::{CannotStart, Failed, process};
use lexopt::ValueExt;

use crate::store::{Home, Kind, Server};

/// As messages name this program.
const NAME: &str = "async_command";
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);
const DATA: &str = "location-data";
/// Seven days, in seconds.
const KEEP: u64 = 7 * 24 * 3_600;

const HELP: &str = "\
Commands that are accepted now and finished later, and every way in which a client may learn of their outcome.

usage: async_command [--listen ADDRESS] [--data DIR | --store postgres|redis --url URL] [--keep SECONDS]
       async_command --self-test [--store fjall|postgres|redis] [--hosts N]

The first form serves a page, and all that it needs, until SIGINT or SIGTERM; it prints a line for curl for each way.
  --listen ADDRESS       where (default 127.0.0.1:8080)
  --data DIR             where everything is kept (default location-data, in the current directory); made if missing;
                         one process at a time
  --store S, --url URL   the server that everything is kept in; all processes that are given the same one are a fleet
  --keep SECONDS         how long the outcome of a command is kept, and then its ID alone: 410 (default 604800)
  --until-stdin-ends     stop when standard input ends, too

The second form starts the first as a child process, tries each way, kills it with SIGKILL in the middle of slow
commands and starts it again. With --store and --hosts, three or more, there are so many on a private server: two are killed for
good, and everything is asked of one of the others. Its exit status is 0 if everything was right, 1 if not.

Whatever cannot be done as asked is one line on standard error, and exit status 2. A host that ends by itself (its store has
lost data) has status 1: start it anew.
";

/// A command line that was understood.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Help,
    Serve(Serve),
    SelfTest(Kind, usize),
}

/// The options of the first form.
#[derive(Debug, PartialEq, Eq)]
struct Serve {
    listen: SocketAddr,
    home: Home,
    keep: Duration,
    /// Stop when standard input ends: how a child learns that its parent is gone.
    until_stdin_ends: bool,
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, lexopt::Error> {
    use lexopt::Arg::{Long, Short};
    let mut args = lexopt::Parser::from_args(args);
    let keep = Duration::from_secs(KEEP);
    let mut options = Serve { listen: LISTEN, home: Home::Directory(DATA.into()), keep, until_stdin_ends: false };
    let (mut is_first, mut self_test, mut store, mut hosts) = (true, false, Kind::Fjall, 1);
    let (mut data, mut url) = (None, None);
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") | Short('h') => return Ok(Command::Help),
            Long("self-test") if is_first => self_test = true,
            Long("store") => store = args.value()?.parse()?,
            Long("hosts") if self_test => hosts = args.value()?.parse()?,
            _ if self_test => return Err("--self-test takes --store and --hosts alone".into()),
            Long("listen") => options.listen = args.value()?.parse()?,
            Long("data") => data = Some(PathBuf::from(args.value()?)),
            Long("url") => url = Some(args.value()?.string()?),
            Long("keep") => options.keep = Duration::from_secs(args.value()?.parse()?),
            Long("until-stdin-ends") => options.until_stdin_ends = true,
            _ => return Err(arg.unexpected()),
        }
        is_first = false;
    }
    if !(Duration::from_secs(1)..=Duration::from_secs(10 * 366 * 24 * 3_600)).contains(&options.keep) {
        return Err("--keep must be from 1 second to 10 years".into());
    }
    if self_test {
        let fits = if store == Kind::Fjall { hosts == 1 } else { hosts == 1 || hosts >= 3 };
        let why = "there is one host, or on --store postgres or --store redis three or more, of which two are killed";
        return if fits { Ok(Command::SelfTest(store, hosts)) } else { Err(why.into()) };
    }
    options.home = match (store, data, url) {
        (Kind::Fjall, data, None) => Home::Directory(data.unwrap_or_else(|| DATA.into())),
        (Kind::Postgres | Kind::Redis, None, Some(url)) => {
            Home::Server(Server { kind: store, url, space: NAME.to_owned(), name: None })
        }
        _ => return Err("--data is for --store fjall, and --url is for the others".into()),
    };
    Ok(Command::Serve(options))
}

#[tokio::main]
async fn main() -> ExitCode {
    match parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Ok(Command::Serve(options)) => {
            tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(log_filter("warn")).init();
            let Serve { listen, home, keep, until_stdin_ends } = options;
            match web::serve(listen, &home, keep, process::asked_to_stop(until_stdin_ends)).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => Failed::from(error).report(NAME),
            }
        }
        Ok(Command::SelfTest(store, hosts)) => {
            let run = |data| self_test::run(store, hosts, data);
            prove(NAME, self_test::LIMIT, run, self_test::Report::is_right).await
        }
        Err(error) => CannotStart::new("bad arguments (--help explains them)", error).report(NAME),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn no_arguments_serve_with_the_defaults() {
        let (listen, keep) = (([127, 0, 0, 1], 8080).into(), Duration::from_secs(7 * 86_400));
        let home = |data: &str| Home::Directory(data.into());
        let defaults = Serve { listen, home: home("location-data"), keep, until_stdin_ends: false };
        assert_eq!(parsed(""), Ok(Command::Serve(defaults)));
        let (listen, keep) = (([0, 0, 0, 0], 80).into(), Duration::from_secs(2));
        let given = Serve { listen, home: home("d"), keep, until_stdin_ends: true };
        assert_eq!(parsed("--listen 0.0.0.0:80 --data=d --keep 2 --until-stdin-ends"), Ok(Command::Serve(given)));
        let Ok(Command::Serve(Serve { home: Home::Server(server), .. })) = parsed("--store redis --url redis://a")
        else {
            unreachable!("it is a server")
        };
        assert_eq!((server.kind, &*server.url, server.name), (Kind::Redis, "redis://a", None));
    }

    #[test]
    fn nonsense_is_refused_and_help_is_given() {
        assert_eq!(parsed("--self-test"), Ok(Command::SelfTest(Kind::Fjall, 1)));
        assert_eq!(parsed("--self-test --store postgres --hosts 3"), Ok(Command::SelfTest(Kind::Postgres, 3)));
        for line in [
            "--lisen x",
            "--listen",
            "--listen 8080",
            "serve",
            "--keep 0",
            "--keep -1",
            "--self-test --data d",
            "--data d --self-test",
            "--self-test --hosts 3",
            "--self-test --store redis --hosts 2",
            "--store postgres",
            "--store postgres --url u --data d",
            "--hosts 3",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
        assert_eq!(parsed("--help"), Ok(Command::Help));
    }
}
