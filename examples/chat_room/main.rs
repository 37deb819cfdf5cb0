//! Chat rooms on WebSockets: every message durable before anyone sees it, and members whose absence an alarm notices.
//!
//! ```text
//! cargo run --release --example chat_room                          # then open http://127.0.0.1:8080/ in two tabs
//! cargo run --release --example chat_room -- join lobby ann        # or talk from two terminals
//! cargo run --release --example chat_room -- --self-test           # ends 0 only if nothing was lost
//! ```
//!
//! Each room is one instance. Members connect to it; what is said goes to everyone in one order and into a bounded history; a
//! member that has not been heard from for a while is announced as gone, whether its browser vanished or this whole process did.
//! Nobody proves here who they are: a name is all it takes.
//!
//! Read `room.rs` for how such a service is written, and `web.rs` for how it meets WebSockets. To copy is what belongs to the
//! program `service.rs` (`--example chat_service`): it serves rooms and nothing else. In `drill` are a client for the terminal, and
//! the proof that it works.

mod protocol;
mod room;
mod web;
mod drill {
    pub(crate) mod client;
    pub(crate) mod self_test;
    pub(crate) mod terminal;
    pub(crate) mod verdict;
}

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use examples::drill::{log_filter, self_test as prove};
use examples::{CannotStart, Failed, process};
use lexopt::ValueExt;

use crate::drill::{self_test, terminal};

/// As messages name this program.
const NAME: &str = "chat_room";
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);
const DATA: &str = "chat-data";
/// Long enough for a reload or a tunnel, short enough to see it happen.
const GONE_AFTER: Duration = Duration::from_secs(15);

const HELP: &str = "\
Chat rooms on WebSockets: every message durable before anyone sees it, and members whose absence an alarm notices.

usage: chat_room [--listen ADDRESS] [--data DIR] [--gone-after SECONDS]
       chat_room join ROOM NAME [--server ADDRESS]
       chat_room --self-test

The first form serves a page, and the rooms behind it, until SIGINT or SIGTERM.
  --listen ADDRESS       where (default 127.0.0.1:8080)
  --data DIR             where rooms are kept (default chat-data, in the current directory); made if missing; one
                         process at a time
  --gone-after SECONDS   a member that is silent for so long is gone (default 15)
  --until-stdin-ends     stop when standard input ends, too

The second form is a client for the terminal: it says each line of its input, and leaves when that ends (Ctrl-D).
  --server ADDRESS       where the first form listens (default 127.0.0.1:8080)

The third form starts the first as a child process, talks in several rooms at once, kills it with SIGKILL and starts
it again, and compares what everyone saw. Its exit status is 0 if everything was right, 1 if not.

Whatever cannot be done as asked is one line on standard error, and exit status 2. A host that ends by itself (its store has
lost data) has status 1: start it anew.
";

/// A command line that was understood.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Help,
    Serve(Serve),
    Join(terminal::Options),
    SelfTest,
}

/// The options of the first form.
#[derive(Debug, PartialEq, Eq)]
struct Serve {
    listen: SocketAddr,
    data: PathBuf,
    gone_after: Duration,
    /// Stop when standard input ends: how a child learns that its parent is gone.
    until_stdin_ends: bool,
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, lexopt::Error> {
    use lexopt::Arg::{Long, Short, Value};
    let mut args = lexopt::Parser::from_args(args);
    let mut options = Serve { listen: LISTEN, data: DATA.into(), gone_after: GONE_AFTER, until_stdin_ends: false };
    let mut is_first = true;
    let mut self_test = false;
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") | Short('h') => return Ok(Command::Help),
            Value(word) if is_first && word == "join" => return parse_join(args),
            Long("self-test") if is_first => self_test = true,
            _ if self_test => return Err("--self-test takes no other options".into()),
            Long("listen") => options.listen = args.value()?.parse()?,
            Long("data") => options.data = args.value()?.into(),
            Long("gone-after") => options.gone_after = seconds(args.value()?.parse()?)?,
            Long("until-stdin-ends") => options.until_stdin_ends = true,
            _ => return Err(arg.unexpected()),
        }
        is_first = false;
    }
    Ok(if self_test { Command::SelfTest } else { Command::Serve(options) })
}

fn parse_join(mut args: lexopt::Parser) -> Result<Command, lexopt::Error> {
    use lexopt::Arg::{Long, Short, Value};
    let (mut room, mut name, mut server) = (None, None, LISTEN);
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") | Short('h') => return Ok(Command::Help),
            Long("server") => server = args.value()?.parse()?,
            Value(word) if room.is_none() => room = Some(word.string()?),
            Value(word) if name.is_none() => name = Some(word.string()?),
            _ => return Err(arg.unexpected()),
        }
    }
    let room = room.ok_or("join needs a ROOM and a NAME")?;
    let name = name.ok_or("join needs a NAME")?;
    Ok(Command::Join(terminal::Options { server, room, name }))
}

fn seconds(seconds: f64) -> Result<Duration, lexopt::Error> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if (Duration::from_millis(100)..=Duration::from_secs(86_400)).contains(&time) => Ok(time),
        _ => Err("--gone-after must be from 0.1 to 86400 seconds".into()),
    }
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
            let Serve { listen, data, gone_after, until_stdin_ends } = options;
            match web::serve(listen, &data, gone_after, process::asked_to_stop(until_stdin_ends)).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => Failed::from(error).report(NAME),
            }
        }
        Ok(Command::Join(options)) => match terminal::talk(options).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(reason) => CannotStart::new("not let in", reason).report(NAME),
        },
        Ok(Command::SelfTest) => run_self_test().await,
        Err(error) => CannotStart::new("bad arguments (--help explains them)", error).report(NAME),
    }
}

async fn run_self_test() -> ExitCode {
    let run = async |data: PathBuf| {
        let report = self_test::run(&data).await?;
        for fault in &report.faults {
            println!("{fault}");
        }
        Ok(report)
    };
    prove(NAME, self_test::LIMIT, run, |report| report.faults.is_empty()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())
    }

    fn defaults() -> Serve {
        Serve {
            listen: ([127, 0, 0, 1], 8080).into(),
            data: "chat-data".into(),
            gone_after: Duration::from_secs(15),
            until_stdin_ends: false,
        }
    }

    #[test]
    fn no_arguments_serve_with_the_defaults() {
        assert_eq!(parsed(""), Ok(Command::Serve(defaults())));
        let given = Serve {
            listen: ([0, 0, 0, 0], 80).into(),
            data: "d".into(),
            gone_after: Duration::from_millis(2_500),
            until_stdin_ends: true,
        };
        let line = "--listen 0.0.0.0:80 --data=d --gone-after 2.5 --until-stdin-ends";
        assert_eq!(parsed(line), Ok(Command::Serve(given)));
    }

    #[test]
    fn a_client_needs_a_room_and_a_name() {
        let options = terminal::Options { server: LISTEN, room: "r".to_owned(), name: "n".to_owned() };
        assert_eq!(parsed("join r n"), Ok(Command::Join(options)));
        for line in ["join", "join r", "join r n x", "join r n --server here", "--data d join r n"] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }

    #[test]
    fn nonsense_is_refused_and_help_is_given() {
        assert_eq!(parsed("--self-test"), Ok(Command::SelfTest));
        for line in [
            "--lisen x",
            "--listen",
            "--listen 8080",
            "serve",
            "--gone-after 0",
            "--gone-after nan",
            "--gone-after -1",
            "--self-test --data d",
            "--data d --self-test",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
        assert_eq!(parsed("--help"), Ok(Command::Help));
        assert_eq!(parsed("join -h"), Ok(Command::Help));
    }
}
