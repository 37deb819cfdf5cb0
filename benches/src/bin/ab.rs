//! Two builds of a benchmark, side by side: has the newer one become slower?
//!
//! ```text
//! cargo run --release -p benches --bin ab -- OLD NEW -- --ours one
//! ```
//!
//! OLD and NEW are two builds of `ask`, copied to where the next build does not replace them. They run in turns, one after the
//! other and each first as often as second, so that whatever else the machine does falls on both alike. A turn's figure is the
//! median of what it printed; a pair gives the ratio new / old. Printed are the median of the ratios and its 95 % interval.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use benches::measure::median;
use benches::pairs::{FEWEST, figure, median_interval};
use benches::report::{Line, print_lines};

const HELP: &str = "\
usage: ab [--pairs N] [--seconds S] [--at-most RATIO] OLD NEW [-- ARGUMENTS..]

Runs two builds of a benchmark in turns, and prints the median of the ratios NEW / OLD with its 95 % interval.

  OLD, NEW         two programs that print figures: a line of JSON with \"ours\", or \"124.3 ns\"
  ARGUMENTS        given to both; `--ours one` if there are none
  --pairs N        how many pairs of turns, at least 6; default: 21
  --seconds S      after how many seconds a turn that has not ended is ended; default: 5
  --at-most RATIO  fail (status 1) if the interval's upper end is greater; 1.03 for \"within 3 %\"

A status of 2 says that nothing could be measured.";

/// The work to be done, as the arguments have it.
#[derive(Debug, PartialEq)]
struct Plan {
    pairs: usize,
    turn: Duration,
    at_most: Option<f64>,
    old: PathBuf,
    new: PathBuf,
    arguments: Vec<String>,
}

/// Reads the arguments; `Ok(None)` if they ask for help.
fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Option<Plan>, String> {
    let (mut pairs, mut turn, mut at_most, mut programs) = (21, Duration::from_secs(5), None, Vec::new());
    let mut arguments = arguments.into_iter();
    let mut given = Vec::new();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "-h" | "--help" => return Ok(None),
            "--pairs" => pairs = number(&argument, &value()?)?,
            "--seconds" => {
                let seconds: f64 = number(&argument, &value()?)?;
                turn = Duration::try_from_secs_f64(seconds).map_err(|error| format!("--seconds {seconds}: {error}"))?;
            }
            "--at-most" => at_most = Some(number(&argument, &value()?)?),
            "--" => {
                given = arguments.collect();
                break;
            }
            option if option.starts_with('-') => return Err(format!("there is no option {option}")),
            _ => programs.push(PathBuf::from(argument)),
        }
    }
    if pairs < FEWEST {
        return Err(format!("--pairs {pairs}: an interval of 95 % takes {FEWEST} at least"));
    }
    if turn.is_zero() {
        return Err("--seconds 0: a turn takes some time".to_owned());
    }
    let [old, new] = <[PathBuf; 2]>::try_from(programs)
        .map_err(|programs| format!("{} programs are given where two are wanted: OLD and NEW", programs.len()))?;
    if given.is_empty() {
        given = ["--ours", "one"].map(str::to_owned).into();
    }
    Ok(Some(Plan { pairs, turn, at_most, old, new, arguments: given }))
}

fn number<T: std::str::FromStr>(option: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{option} {text}: that is no number it can take"))
}

fn main() -> ExitCode {
    let plan = match parse(std::env::args().skip(1)) {
        Ok(Some(plan)) => plan,
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match measure(&plan) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// Runs the turns and prints what they say; whether the new build is as fast as it has to be.
fn measure(plan: &Plan) -> Result<bool, String> {
    let (mut old, mut new, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..plan.pairs {
        let (before, after) = if pair % 2 == 0 {
            let before = turn(&plan.old, plan)?;
            (before, turn(&plan.new, plan)?)
        } else {
            let after = turn(&plan.new, plan)?;
            (turn(&plan.old, plan)?, after)
        };
        println!("{:3}: {before:.1} -> {after:.1}, {:.3}", pair + 1, after / before);
        // Seen by who watches, also through a pipe.
        drop(std::io::stdout().flush());
        old.push(before);
        new.push(after);
        ratios.push(after / before);
    }
    let ratio = median(&ratios);
    let (low, high) = median_interval(&ratios).ok_or("too few pairs")?;
    println!("\nnew / old of {}: {ratio:.3}, with 95 % from {low:.3} to {high:.3}", plan.arguments.join(" "));
    let line = Line::new("ab")
        .text("arguments", &plan.arguments.join(" "))
        .number("pairs", plan.pairs as f64)
        .number("old", median(&old))
        .number("new", median(&new))
        .number("ratio", ratio)
        .number("low", low)
        .number("high", high);
    print_lines(&[line]);
    Ok(plan.at_most.is_none_or(|most| high <= most))
}

/// Runs one build for one turn, and returns its figure.
fn turn(program: &Path, plan: &Plan) -> Result<f64, String> {
    let name = program.display();
    let mut child = Command::new(program)
        .args(&plan.arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{name} cannot be started: {error}"))?;
    let mut output = child.stdout.take().ok_or("a piped output is there")?;
    let (read, all) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error counts.
        drop(output.read_to_end(&mut bytes));
        drop(read.send(bytes));
    });
    // The output ends with the program.
    let (bytes, was_ended) = match all.recv_timeout(plan.turn) {
        Ok(bytes) => (bytes, false),
        Err(_) => {
            // It may have ended by itself just now.
            drop(child.kill());
            (all.recv().map_err(|_| format!("the output of {name} was lost"))?, true)
        }
    };
    let status = child.wait().map_err(|error| format!("{name}: {error}"))?;
    drop(reader.join());
    if !status.success() && !was_ended {
        return Err(format!("{name} failed: {status}"));
    }
    let text = String::from_utf8_lossy(&bytes);
    figure(&text).ok_or_else(|| {
        let arguments = plan.arguments.join(" ");
        format!("{name} {arguments} printed no figure within {:?}; it printed {:?}", plan.turn, text.trim_end())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(arguments: &str) -> Result<Option<Plan>, String> {
        parse(arguments.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn two_programs_are_enough_and_whatever_is_behind_the_dashes_is_theirs() {
        let plan = |arguments| plan(arguments).expect("they are good").expect("they ask for no help");
        let found = plan("a b");
        assert_eq!((found.old, found.new), ("a".into(), "b".into()));
        assert_eq!((found.pairs, found.turn, found.at_most), (21, Duration::from_secs(5), None));
        assert_eq!(found.arguments, ["--ours", "one"]);
        let found = plan("--pairs 6 a --seconds 0.5 b --at-most 1.03 -- --ours hot --help");
        assert_eq!((found.pairs, found.turn, found.at_most), (6, Duration::from_millis(500), Some(1.03)));
        assert_eq!(found.arguments, ["--ours", "hot", "--help"]);
    }

    #[test]
    fn arguments_that_cannot_be_meant_are_refused_by_name() {
        for (arguments, said) in [
            ("", "0 programs"),
            ("a", "1 programs"),
            ("a b c", "3 programs"),
            ("a b --pairs", "--pairs needs a value"),
            ("a b --pairs 5", "--pairs 5"),
            ("a b --pairs many", "--pairs many"),
            ("a b --seconds 0", "--seconds 0"),
            ("a b --seconds -1", "--seconds -1"),
            ("a b --at-most x", "--at-most x"),
            ("a b --fast", "--fast"),
        ] {
            let error = plan(arguments).expect_err(arguments);
            assert!(error.contains(said), "{arguments}: {error}");
        }
        assert_eq!(plan("--help"), Ok(None));
        assert_eq!(plan("a b -h"), Ok(None));
    }

    #[test]
    fn a_turn_is_what_the_program_says_also_if_it_has_to_be_ended() {
        let of = |script: &str, turn| {
            let arguments = vec!["-c".to_owned(), script.to_owned()];
            let plan = Plan { pairs: 6, turn, at_most: None, old: "sh".into(), new: "sh".into(), arguments };
            turn_of(&plan)
        };
        let (soon, late) = (Duration::from_millis(300), Duration::from_secs(60));
        assert_eq!(of("echo 12.5 ns", late), Ok(12.5));
        assert_eq!(of("echo 12.5 ns; exec sleep 600", soon), Ok(12.5));
        assert!(of("exit 3", late).is_err_and(|error| error.contains("failed")));
        assert!(of("echo hello", late).is_err_and(|error| error.contains("hello")));
        let nothing = Plan { old: "/nowhere".into(), ..plan("a b").expect("they are good").expect("no help") };
        assert!(turn_of(&nothing).is_err_and(|error| error.contains("/nowhere")));
    }

    fn turn_of(plan: &Plan) -> Result<f64, String> {
        turn(&plan.old, plan)
    }
}
