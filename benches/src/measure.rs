//! Clocks, memory, percentiles and fresh processes.

use std::fs;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

/// The median; the mean of the middle two if their number is even.
///
/// # Panics
/// If there are no values.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + sorted[middle]) / 2.0 } else { sorted[middle] }
}

/// The value below which `share` (0 to 1) of `sorted` lies.
///
/// # Panics
/// If there are no values.
#[must_use]
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil().max(1.0);
    #[allow(clippy::cast_possible_truncation, reason = "a rank is at most the length, a whole number")]
    let index = (rank as usize).min(sorted.len()) - 1;
    sorted[index]
}

/// The memory this process has in RAM, in bytes.
///
/// # Panics
/// On a system without `/proc`.
#[must_use]
pub fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").expect("memory is read from Linux's /proc");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("statm has the resident pages in its second place") * rustix::param::page_size() as u64
}

/// The processor time this process has used, user and system, all threads.
#[must_use]
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Raises the limit of open descriptors of this process to so many, as far as its hard limit goes, and returns what it is now: where that is
/// less, it says so.
#[must_use]
pub fn most_descriptors(wanted: u64) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = maximum.map_or(wanted, |maximum| maximum.min(wanted));
    if raised < wanted {
        println!(
            "this process may open {raised} descriptors (its hard limit, see `ulimit -Hn`), and {wanted} were meant"
        );
    }
    match current {
        Some(current) if current < raised => {
            let limit = Rlimit { current: Some(raised), maximum };
            setrlimit(Resource::Nofile, limit).map_or(current, |()| raised)
        }
        // As many as are wanted, or without a limit.
        _ => raised,
    }
}

/// The first argument of a process that measures one thing for the process that started it.
pub const CHILD: &str = "--child";

/// Tells what this process is to measure, if it is such a process.
#[must_use]
pub fn child_arguments() -> Option<Vec<String>> {
    let mut arguments = std::env::args().skip(1);
    (arguments.next().as_deref() == Some(CHILD)).then(|| arguments.collect())
}

/// Runs this program anew to measure one thing, and returns the numbers of the line it prints last.
///
/// # Panics
/// If the child fails or prints no numbers.
#[must_use]
pub fn in_fresh_process(arguments: &[&str]) -> Vec<f64> {
    let program = std::env::current_exe().expect("a running program has a path");
    let output = Command::new(program).arg(CHILD).args(arguments).output().expect("this program can be started again");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    let last = text.lines().last().unwrap_or_default();
    let numbers: Result<Vec<f64>, _> = last.split(' ').map(str::parse).collect();
    numbers.expect("a child prints numbers last")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_of_values_lies_between_the_middle_two() {
        assert_eq!(median(&[9.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&[9.0, 1.0, 3.0]), 3.0);
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 50.0);
        assert_eq!(percentile(&values, 0.99), 99.0);
        assert_eq!(percentile(&values, 1.0), 100.0);
        assert_eq!(percentile(&values[..1], 0.99), 1.0);
    }
}
