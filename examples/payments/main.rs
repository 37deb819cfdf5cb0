//! Payments through Stripe, in scripts, on a host that is killed while calls are in flight: every customer is charged once.
//!
//! ```text
//! cargo run --release --example payments                       # with a fake Stripe; ends 0 only if its books agree
//! cargo run --release --example payments -- --store postgres --hosts 3
//! STRIPE_API_KEY=sk_test_.. STRIPE_WEBHOOK_SECRET=whsec_.. cargo run --release --example payments -- --stripe-url https://api.stripe.com
//! ```
//!
//! Read `flows/checkout.rhai`: it is all that there is to a payment, from top to bottom; `flows/checkout_by_answers.rhai` is the same with
//! a script for each answer. `stripe.rs` is what these scripts know of Stripe, and `service.rs` how they are served. `fake/` is a Stripe
//! for this machine, and the other files are the proof that they do what they say.

mod drill;
mod fake;
mod form;
mod library;
mod plan;
mod service;
mod stripe;
mod verdict;
mod wire;

// As the other drills have them.
#[allow(dead_code, reason = "hosts of this one neither join nor stay for good")]
#[path = "../webhook_timeout/doors.rs"]
mod doors;
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

use callback_flows::UrlKeys;
use examples::drill::{log_filter, self_test as prove};
use examples::{CannotStart, Failed, process};
use lexopt::ValueExt as _;
use reqwest::Url;
use tokio::net::TcpListener;

use crate::service::Service;
use crate::store::{Home, Kind, Server};
use crate::stripe::Account;
use crate::wire::Wire;

/// As messages name this program.
const NAME: &str = "payments";
/// Longer than any drill takes, which has limits of its own.
const LIMIT: Duration = Duration::from_secs(3_600);
/// The fake's API key and secret, which need to be none, and the secret that the drill's callback URLs are signed with.
const FAKE_KEY: &str = "sk_test_of_the_drill";
const FAKE_SECRET: &str = "whsec_of_the_drill";
const NO_SECRET: &str = "a drill has no secrets";
/// The variables of the environment that have those of Stripe itself.
const KEY: &str = "STRIPE_API_KEY";
const SECRET: &str = "STRIPE_WEBHOOK_SECRET";

const HELP: &str = "\
Payments through Stripe, in scripts, on a host that is killed while calls are in flight: every customer is charged once.

usage: payments [--store fjall|postgres|redis] [--hosts N] [--orders N] [--kills N] [--seed N] [--quiet] [--broken]
                [--stripe-url URL]

It plays Stripe, and runs the host as a child process. Customers order; each is charged and, if Stripe says in time that it is
paid, gets what was ordered, else the money back. Half of the orders run a script from top to bottom, half a script for each
answer. Stripe declines cards, refuses requests for now (429, 503), answers with an error (500) whether it did its work or not,
hangs, and drops connections when it has done its work. The host is killed with SIGKILL while calls are in flight, and once,
meanwhile, a script is changed on disk. In the end Stripe's books are held against what the flows say.
  --store S     where flows are kept (default fjall: a directory, for one host alone); a server is private
  --hosts N     how many hosts share the store (default 1); of several, one that is killed stays away until the others have gone on with
                all that it had, for three leases of 2 s
  --orders N    how many orders (default 150, at least 20)
  --kills N     how often a host is killed (default 3, at least 1)
  --seed N      draws the orders and what Stripe does with each (default 1)
  --quiet       print only what went wrong, and the last line
  --broken      send another key with each attempt of a call: then customers are charged twice, and the drill has to find that
  --stripe-url URL
                use Stripe's test mode: URL is https://api.stripe.com, its key is in STRIPE_API_KEY (sk_test_..), and the secret of
                its events in STRIPE_WEBHOOK_SECRET, as `stripe listen --print-secret` says it; a line says how to forward the
                events. Then there are 20 orders by default and one kill.
Its exit status is 0 if every payment ended once and rightly, 1 if not, 2 if it could not be run as asked.
";

/// The options of a host, as the drill starts it.
#[derive(Debug)]
struct Serving {
    home: Home,
    listen: SocketAddr,
    flows: PathBuf,
    canary: PathBuf,
    stripe: Url,
    key: String,
    secret: String,
    is_broken: bool,
}

#[derive(Debug)]
enum Command {
    Help,
    Drill(drill::Options),
    Serve(Serving),
}

fn parse(
    args: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Command, lexopt::Error> {
    use lexopt::Arg::{Long, Short, Value};
    let mut args = lexopt::Parser::from_args(args);
    let (mut orders, mut kills, mut seed, mut quiet) = (None, None, 1, false);
    let (mut store, mut hosts, mut is_host, mut is_broken) = (Kind::Fjall, 1, false, false);
    let (mut data, mut url, mut listen, mut flows, mut canary) = (None, None, None, None, None);
    let (mut stripe_url, mut fake_url): (Option<Url>, Option<Url>) = (None, None);
    while let Some(arg) = args.next()? {
        match arg {
            Value(word) if word == "serve" => is_host = true,
            Long("help") | Short('h') => return Ok(Command::Help),
            Long("store") => store = args.value()?.parse()?,
            Long("hosts") => hosts = args.value()?.parse()?,
            Long("orders") => orders = Some(args.value()?.parse()?),
            Long("kills") => kills = Some(args.value()?.parse()?),
            Long("seed") => seed = args.value()?.parse()?,
            Long("quiet") | Short('q') => quiet = true,
            Long("broken") => is_broken = true,
            Long("stripe-url") => stripe_url = Some(args.value()?.parse()?),
            Long("fake-url") if is_host => fake_url = Some(args.value()?.parse()?),
            Long("data") if is_host => data = Some(args.value()?.into()),
            Long("url") if is_host => url = Some(args.value()?.string()?),
            Long("listen") if is_host => listen = Some(args.value()?.parse()?),
            Long("flows") if is_host => flows = Some(args.value()?.into()),
            Long("canary") if is_host => canary = Some(args.value()?.into()),
            Long("until-stdin-ends") if is_host => {}
            _ => return Err(arg.unexpected()),
        }
    }
    let stripe = match stripe_url {
        None => None,
        Some(url) => {
            let needed = |name: &str| {
                let value = variable(name).filter(|value| !value.is_empty());
                value.ok_or_else(|| lexopt::Error::from(format!("--stripe-url needs {name} in the environment")))
            };
            let (key, secret) = (needed(KEY)?, needed(SECRET)?);
            if !key.starts_with("sk_test_") && !key.starts_with("rk_test_") {
                return Err(format!("{KEY} is no key for tests: this would charge people").into());
            }
            Some((url, key, secret))
        }
    };
    if is_host {
        let home = match (data, url) {
            (Some(data), None) => Home::Directory(data),
            (None, Some(url)) => Home::Server(Server { kind: store, url, space: NAME.to_owned(), name: None }),
            _ => return Err("a host needs --data, or --url".into()),
        };
        let listen = listen.ok_or("a host needs --listen")?;
        let (flows, canary) = flows.zip(canary).ok_or("a host needs --flows and --canary")?;
        let fake = fake_url.map(|url| (url, FAKE_KEY.to_owned(), FAKE_SECRET.to_owned()));
        let (stripe, key, secret) = stripe.or(fake).ok_or("a host needs --stripe-url or --fake-url")?;
        return Ok(Command::Serve(Serving { home, listen, flows, canary, stripe, key, secret, is_broken }));
    }
    let (all_orders, all_kills) = if stripe.is_some() { (20, 1) } else { (150, 3) };
    let (orders, kills) = (orders.unwrap_or(all_orders), kills.unwrap_or(all_kills));
    if orders < 20 || hosts == 0 || kills == 0 {
        return Err("there are at least --orders 20, --hosts 1 and --kills 1".into());
    }
    if store == Kind::Fjall && hosts > 1 {
        let why = "--store fjall has one host, since only one process can open its directory; \
                   more hosts need --store postgres or --store redis";
        return Err(why.into());
    }
    let stripe = stripe.map(|(url, key, _)| (url, key));
    if is_broken && stripe.is_some() {
        return Err("--broken is for the fake alone".into());
    }
    Ok(Command::Drill(drill::Options { orders, kills, seed, quiet, store, hosts, is_broken, stripe }))
}

async fn serve(serving: Serving) -> Result<(), Failed> {
    let Serving { home, listen, flows, canary, stripe, key, secret, is_broken } = serving;
    let cannot_listen = |error| CannotStart::new(format!("cannot listen on {listen}"), error);
    let listener = TcpListener::bind(listen).await.map_err(cannot_listen)?;
    let host = home.host(&listener.local_addr().map_err(cannot_listen)?.to_string()).await?;
    let account = Account::new(Wire::new(&stripe)?, &key).broken(is_broken);
    let keys = UrlKeys::new("drill", NO_SECRET).map_err(|e| CannotStart::new("cannot sign URLs", e))?;
    let service = Service { library: flows, account, secret, canary, keys };
    Ok(service::serve(host, listener, service, process::asked_to_stop(true)).await?)
}

#[tokio::main]
async fn main() -> ExitCode {
    match parse(std::env::args_os().skip(1), |name| std::env::var(name).ok()) {
        Ok(Command::Help) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Ok(Command::Drill(options)) => run_drill(options).await,
        Ok(Command::Serve(serving)) => {
            // What a drill does to its hosts is no news to whoever runs the drill.
            tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(log_filter("error")).init();
            match serve(serving).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => error.report(NAME),
            }
        }
        Err(error) => CannotStart::new("bad arguments (--help explains them)", error).report(NAME),
    }
}

async fn run_drill(options: drill::Options) -> ExitCode {
    let run = async |data: PathBuf| {
        let report = drill::run(&options, &data).await?;
        if !options.quiet {
            println!("\n{}", report.table());
        }
        print!("{}", report.faults());
        Ok(report)
    };
    prove(NAME, LIMIT, run, verdict::Report::is_right).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str, environment: &[(&str, &str)]) -> Result<Command, String> {
        let variable =
            |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        parse(line.split_whitespace().map(OsString::from), variable).map_err(|error| error.to_string())
    }

    fn drill(line: &str, environment: &[(&str, &str)]) -> drill::Options {
        match parsed(line, environment) {
            Ok(Command::Drill(options)) => options,
            other => unreachable!("{line} is {other:?}"),
        }
    }

    #[test]
    fn no_arguments_are_the_drill_with_its_defaults() {
        let options = drill("", &[]);
        assert_eq!((options.orders, options.kills, options.hosts, options.store), (150, 3, 1, Kind::Fjall));
        let options = drill("--store redis --hosts 3 --orders 40 --seed 7 -q", &[]);
        assert_eq!((options.orders, options.hosts, options.seed, options.quiet), (40, 3, 7, true));
    }

    #[test]
    fn stripe_itself_is_used_with_a_key_for_tests_alone() {
        let url = "--stripe-url https://api.stripe.com";
        let of = |key| [(KEY, key), (SECRET, "whsec_1")];
        assert_eq!(drill(url, &of("sk_test_1")).stripe.map(|(_, key)| key), Some("sk_test_1".to_owned()));
        assert!(parsed(url, &of("sk_live_1")).is_err_and(|why| why.contains("would charge people")));
        assert!(parsed(url, &[(KEY, "sk_test_1")]).is_err_and(|why| why.contains(SECRET)));
        assert!(parsed(url, &[(SECRET, "whsec_1")]).is_err_and(|why| why.contains(KEY)));
        let broken = format!("{url} --broken");
        assert!(parsed(&broken, &of("sk_test_1")).is_err_and(|why| why.contains("for the fake alone")));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["--order 5", "--orders", "--orders 3", "--hosts 3", "--kills 0", "serve", "--fake-url http://x"] {
            assert!(parsed(line, &[]).is_err(), "{line}");
        }
    }
}
