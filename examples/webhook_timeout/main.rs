//! Orders that wait for a webhook, with a timeout, through a host that is killed again and again.
//!
//! ```text
//! cargo run --release --example webhook_timeout                       # the drill: ends 0 only if nothing was lost
//! cargo run --release --example webhook_timeout -- serve --data DIR --listen 127.0.0.1:8080
//! ```
//!
//! The drill starts a partner service in this process and the host as a child. Orders arrive by HTTP; each sets a durable
//! timeout, then tells the partner where to call back; the partner does so in time, late, twice or never. Meanwhile the host
//! is killed with SIGKILL and started again on the same directory. In the end the partner's ledger is held against what the
//! host says of each order.
//!
//! Read `host.rs` for how such a service is written; the other files are the proof that it works.

mod drill;
mod host;
mod partner;
mod verdict;

use std::ffi::OsString;
use std::process::ExitCode;

use examples::{CannotStart, in_one_line, process};
use lexopt::ValueExt;

/// As messages name this program.
const NAME: &str = "webhook_timeout";

const HELP: &str = "\
Orders that wait for a webhook, with a timeout, through a host that is killed again and again.

usage: webhook_timeout [--orders N] [--kills N] [--seed N] [--quiet]
       webhook_timeout serve --data DIR --listen ADDRESS [--partner URL]

The first form is the drill. It starts a partner service and, as a child process, the host; sends it orders; kills
it with SIGKILL while orders wait, and compares what the partner saw with what the host says of each order.
  --orders N    how many orders (default 200)
  --kills N     how often the host is killed (default 3); each kill needs 50 orders
  --seed N      draws what the partner does with each order and when the kills happen (default 1)
  --quiet       print only what went wrong, and the last line
Its exit status is 0 if every order was decided once and rightly, 1 if not, 2 if it could not be run as asked.

The second form runs the host alone.
  --data DIR    where it keeps its orders; made if missing; one process at a time
  --listen ADDRESS    such as 127.0.0.1:8080
  --partner URL       where to POST {\"order\": .., \"callback\": ..} for each new order; nobody is told without it
  --until-stdin-ends  stop when standard input ends, not only on SIGINT and SIGTERM
";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Help,
    Drill(drill::Options),
    Serve(host::Options),
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, lexopt::Error> {
    use lexopt::Arg::{Long, Short, Value};
    let mut args = lexopt::Parser::from_args(args);
    let mut drill = drill::Options { orders: 200, kills: 3, seed: 1, quiet: false };
    match args.next()? {
        None => {}
        Some(Value(word)) if word == "serve" => return parse_serve(args),
        Some(mut arg) => loop {
            match arg {
                Long("help") | Short('h') => return Ok(Command::Help),
                Long("orders") => drill.orders = args.value()?.parse()?,
                Long("kills") => drill.kills = args.value()?.parse()?,
                Long("seed") => drill.seed = args.value()?.parse()?,
                Long("quiet") | Short('q') => drill.quiet = true,
                _ => return Err(arg.unexpected()),
            }
            match args.next()? {
                Some(next) => arg = next,
                None => break,
            }
        },
    }
    if drill.orders == 0 {
        return Err("--orders must be at least 1".into());
    }
    let needed = drill.kills.saturating_mul(drill::ORDERS_PER_KILL);
    if drill.orders < needed {
        let why = format!("--kills {} needs --orders {needed} or more, so that {} wait", drill.kills, drill::WAITING);
        return Err(why.into());
    }
    Ok(Command::Drill(drill))
}

fn parse_serve(mut args: lexopt::Parser) -> Result<Command, lexopt::Error> {
    use lexopt::Arg::{Long, Short};
    let (mut data, mut listen, mut partner, mut until_stdin_ends) = (None, None, None, false);
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") | Short('h') => return Ok(Command::Help),
            Long("data") => data = Some(args.value()?.into()),
            Long("listen") => listen = Some(args.value()?.parse()?),
            Long("partner") => partner = Some(args.value()?.parse()?),
            Long("until-stdin-ends") => until_stdin_ends = true,
            _ => return Err(arg.unexpected()),
        }
    }
    let data = data.ok_or("serve needs --data DIR")?;
    let listen = listen.ok_or("serve needs --listen ADDRESS")?;
    Ok(Command::Serve(host::Options { data, listen, partner, until_stdin_ends }))
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
            tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(log_filter()).init();
            match host::serve(options).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => error.report(NAME),
            }
        }
        Err(error) => CannotStart::new("bad arguments (--help explains them)", error).report(NAME),
    }
}

/// What `RUST_LOG` says; warnings without it.
fn log_filter() -> tracing_subscriber::EnvFilter {
    tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into())
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
    if !right {
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

    #[test]
    fn no_arguments_are_the_drill_with_its_defaults() {
        let defaults = drill::Options { orders: 200, kills: 3, seed: 1, quiet: false };
        assert_eq!(parsed(""), Ok(Command::Drill(defaults)));
        let given = drill::Options { orders: 100, kills: 2, seed: 9, quiet: true };
        assert_eq!(parsed("--orders 100 --kills=2 --seed 9 -q"), Ok(Command::Drill(given)));
    }

    #[test]
    fn serve_needs_a_directory_and_an_address() {
        let options = host::Options {
            data: "d".into(),
            listen: ([127, 0, 0, 1], 80).into(),
            partner: "http://p/orders".parse().ok(),
            until_stdin_ends: false,
        };
        let line = "serve --data d --listen 127.0.0.1:80 --partner http://p/orders";
        assert_eq!(parsed(line), Ok(Command::Serve(options)));
        assert!(parsed("serve --listen 127.0.0.1:80").is_err_and(|e| e.contains("--data")));
        assert!(parsed("serve --data d").is_err_and(|e| e.contains("--listen")));
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
