//! The example `async_command` as a user runs it: its self-test, and its page in a browser (`async_command/stories.rs`).

#[path = "async_command/stories.rs"]
mod stories;

use std::collections::BTreeSet;
use std::net::TcpListener;

use system_tests::example::Example;

static COMMAND: Example = Example::new("async_command");

/// The checks that the self-test makes: it may make more, and none of these fewer.
const CHECKS: [&str; 37] = [
    "1.1 a location is 404 until it exists, and then 200",
    "1.1 one that fails is never told from one that is late",
    "1.2 a command is accepted: 202, where its status is, when to look",
    "1.2 a request may wait for the end",
    "1.2 a status that has not changed is 304",
    "1.2 the status of a command says what it has made",
    "1.2 the status of a command that failed is 200 with the reason",
    "1.2 whoever follows is sent to the location: 303",
    "2.1 the ends of all commands are heard",
    "2.2 a stream goes on after any event, and is 204 after the last",
    "2.2 creating-location-failed is heard with its reason, and then the end",
    "2.2 location-created is heard, and then the end",
    "2.3 only failures are heard",
    "4 a command over for so long that it is forgotten is 410",
    "4 a key is one command: 202, and 422 with another body",
    "4 a name that another has is 409 at the field",
    "4 an ID may have anything in it",
    "4 another command under its ID is 409, and names the field",
    "4 of two that ask for one name at once, one gets it",
    "4 the same command again is that one: 202",
    "4 what cannot be is refused before it is stored: 400, 413, 415, 422",
    "form: 303 to a page that looks again by itself, and from there to the location",
    "form: a name that is taken is said at the field: 409",
    "form: one of another site is refused",
    "form: one that failed says why, and is filled",
    "form: sent twice, it is one command",
    "form: what cannot be is said at the field: 422",
    "kill: a command acknowledged right before is not lost",
    "kill: a slow command goes on, and makes its location once",
    "kill: a slow command that fails undoes what was done before",
    "kill: a status page ends at the location",
    "kill: a stream goes on without a gap or a repeat",
    "page: nothing is fetched from elsewhere",
    "page: the interface is described",
    "saga: a cancelled command undoes what was done: 202, and then 409",
    "saga: a failure undoes what was done",
    "stop: a host that is asked to stop ends its streams, and itself",
];

/// Runs the self-test; it must make all checks, and its last line must say that all is well.
#[track_caller]
fn assert_all_is_well(args: &[&str]) {
    let output = COMMAND.run(&[&["--self-test"], args].concat());
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let right: BTreeSet<_> = said.lines().filter_map(|line| line.strip_prefix("ok      ")).collect();
    let missing: Vec<_> = CHECKS.into_iter().filter(|check| !right.contains(check)).collect();
    assert!(missing.is_empty(), "not checked: {missing:?}\n{said}");
    let last_line = format!("{} checks, 0 failed; host killed 2 times", right.len());
    assert_eq!(said.lines().last(), Some(&*last_line), "{said}");
}

#[test]
fn every_way_to_learn_of_an_outcome_works_and_goes_on_over_kills() {
    assert_all_is_well(&[]);
}

#[test]
fn every_way_works_through_one_host_of_a_fleet_of_which_two_are_killed_for_good() {
    assert_all_is_well(&["--store", "postgres", "--hosts", "3"]);
}

#[test]
fn what_it_prints_has_a_line_for_the_shell_for_each_option() {
    let data = tempfile::tempdir().expect("a directory");
    let mut serving = COMMAND.serve(&["--data", &data.path().join("data").display().to_string()]);
    let mut printed = String::new();
    while !printed.contains("atlantis") {
        printed += &(serving.next_line() + "\n");
    }
    for option in ["1.1", "1.2, 4", "2.1, 5", "2.2, 2", "2.3, 6"] {
        assert!(printed.contains(&format!("\n  {option} ")), "{option}: {printed}");
    }
    assert!(printed.matches("\n            curl -").count() >= 9 && !printed.contains('@'), "{printed}");
}

#[test]
fn bad_arguments_and_what_cannot_be_had_are_refused() {
    COMMAND.assert_refuses(&["--prot", "5"], "--prot");
    COMMAND.assert_refuses(&["--listen", "here"], "here");
    COMMAND.assert_refuses(&["--keep", "0"], "--keep");
    COMMAND.assert_refuses(&["--self-test", "--data", "x"], "--self-test");
    let data = tempfile::tempdir().expect("a directory");
    let data = data.path().join("data").display().to_string();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    COMMAND.assert_refuses(&["--until-stdin-ends", "--data", &data, "--listen", &address], &address);
    let serving = COMMAND.serve(&["--data", &data]);
    COMMAND.assert_refuses(&["--until-stdin-ends", "--data", &data, "--listen", "127.0.0.1:0"], &data);
    drop(serving);
}
