//! Checks that what the documents say of the tests is true.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

/// Each `` `name` (path.rs) `` in a text.
fn named_tests(text: &str) -> Vec<(String, String)> {
    let mut named = Vec::new();
    for (at, _) in text.match_indices("` (") {
        let name = text[..at].rsplit('`').next().unwrap();
        let path = text[at + 3..].split(')').next().unwrap();
        if path.ends_with(".rs") {
            named.push((name.to_owned(), path.to_owned()));
        }
    }
    named
}

#[test]
fn every_test_that_the_reliability_document_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let named = named_tests(&text);
    assert!(named.len() > 60, "only {} tests are named", named.len());
    for (name, path) in &named {
        let source = std::fs::read_to_string(root.join(path)).unwrap_or_else(|_| panic!("there is no {path}"));
        assert!(source.contains(&format!("fn {name}(")), "{path} has no test named {name}");
    }
}

#[test]
fn every_scenario_of_schedules_that_the_reliability_document_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let table = text.lines().skip_while(|line| *line != "| broken | said so |").take_while(|line| !line.is_empty());
    let named: Vec<_> = table
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(|quoted| !quoted.contains("::") && quoted.contains('_'))
        .collect();
    assert!(named.len() > 8, "only {named:?}");
    let scenarios = std::fs::read_dir(root.join("stable-interfaces/src/schedules")).unwrap();
    let sources: String = scenarios.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    for name in named {
        assert!(sources.contains(&format!("fn {name}(")), "there is no scenario {name}");
    }
}

/// Each `` `Type::function (path)` `` in a text: the function alone, and the path.
fn named_guards(text: &str) -> Vec<(&str, &str)> {
    let quoted = text.split('`').skip(1).step_by(2);
    let guards = quoted.filter_map(|quoted| quoted.strip_suffix(')')?.split_once(" ("));
    guards.map(|(name, path)| (name.rsplit("::").next().unwrap(), path)).collect()
}

#[test]
fn every_guard_that_the_reliability_document_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let named: Vec<_> = text.lines().filter(is_fault).flat_map(named_guards).collect();
    assert!(named.len() > 60, "only {} guards are named", named.len());
    for (name, path) in named {
        let file = ["stable-interfaces/src", "alarm-backends/src", ""].map(|part| root.join(part).join(path));
        let file = file.iter().find(|file| file.exists()).unwrap_or_else(|| panic!("there is no {path}"));
        let source = std::fs::read_to_string(file).unwrap();
        // A script or a query has no functions: there it is a word of it.
        let is_there = match path.ends_with(".rs") {
            true => [format!("fn {name}("), format!("fn {name}<")].iter().any(|start| source.contains(start)),
            false => source.contains(name),
        };
        assert!(is_there, "{path} has no {name}");
    }
}

/// Tells that a line is a row of the table of faults.
fn is_fault(line: &&str) -> bool {
    line.starts_with("| ") && line[2..].starts_with(|c: char| c.is_ascii_digit())
}

#[test]
fn every_fault_of_the_reliability_document_names_a_test_and_its_guard() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let mut seen = BTreeSet::new();
    for row in text.lines().filter(is_fault) {
        let number: u32 = row[2..].split(' ').next().unwrap().parse().unwrap();
        assert!(seen.insert(number), "{number} is there twice");
        assert!(!named_tests(row).is_empty(), "fault {number} names no test");
        assert!(!named_guards(row).is_empty(), "fault {number} names nothing that guards against it");
    }
    assert!(seen.len() > 30, "only {seen:?}");
}

#[test]
fn the_readme_says_what_a_first_program_needs_and_docs_rs_shows_every_feature() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let (readme, workspace) = (read("README.md"), read("Cargo.toml"));
    let oldest = workspace.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    assert!(readme.contains(&format!("Rust {oldest} or newer")), "the README names another version than {oldest}");
    for package in ["stable-interfaces", "alarm-backends", "callback-flows"] {
        let manifest = read(&format!("{package}/Cargo.toml"));
        assert!(manifest.contains("[package.metadata.docs.rs]\nall-features = true\n"), "{package}");
        assert!(readme.contains(&format!("\n{package} = ")), "the README does not say how to install {package}");
    }
    let limits = [
        ("512 bytes", stable_interfaces::store::MAX_ID_BYTES, 512),
        ("1,024 bytes", stable_interfaces::store::MAX_KEY_BYTES, 1_024),
        ("256 KiB", stable_interfaces::store::MAX_VALUE_BYTES, 256 * 1_024),
        ("1,000 effects", stable_interfaces::Context::MAX_EFFECTS, 1_000),
        ("4 MiB", stable_interfaces::Context::MAX_EFFECT_BYTES, 4 * 1_024 * 1_024),
        ("65,536 hosts", stable_interfaces::Fleet::MAX_HOSTS, 65_536),
    ];
    for (said, is, so_much) in limits {
        assert!(is == so_much && readme.contains(said), "the README says {said}, and it is {is}");
    }
    // One is a fragment: a handler of an interface that the reader has to imagine.
    assert_eq!(readme.matches("```rust,ignore").count(), 1, "all other programs are compiled");
    assert!(read("examples/lib.rs").contains("include_str!(\"../README.md\")"));
}

#[test]
fn the_readmes_first_program_is_the_greeter_and_its_table_names_every_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let (readme, greeter, manifest) = (read("README.md"), read("examples/greeter.rs"), read("examples/Cargo.toml"));
    // A program is refused arguments it does not take; the README's need not be.
    let is_shown = |line: &&str| !line.starts_with("//!") && !line.contains("examples::no_arguments");
    let program: Vec<_> = greeter.lines().filter(is_shown).skip_while(|line| line.is_empty()).collect();
    let shown = readme.split("```rust,no_run\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(shown.lines().collect::<Vec<_>>(), program);
    let mut examples: Vec<_> = manifest.split("[[example]]\n").skip(1).collect();
    assert!(examples.len() > 5, "{examples:?}");
    examples.retain(|example| {
        let value = |key: &str| example.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim_matches('"');
        let (name, path) = (value("name = "), value("path = "));
        !readme
            .lines()
            .any(|row| row.starts_with(&format!("| [`{name}")) && row.contains(&format!("](examples/{path})")))
    });
    assert_eq!(examples, Vec::<&str>::new(), "the README's table does not have these, with their paths");
}

#[test]
fn what_is_to_be_copied_is_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("examples");
    for (path, most) in [
        ("http.rs", 65),
        ("webhook_timeout/service.rs", 250),
        ("webhook_timeout/flow_service.rs", 210),
        ("delivery_broker/broker.rs", 170),
        ("delivery_broker/service.rs", 130),
        ("chat_room/service.rs", 250),
        ("chat_room/protocol.rs", 250),
        ("chat_room/room.rs", 250),
        ("chat_room/web.rs", 250),
        ("greeter.rs", 90),
        ("transfer.rs", 90),
        ("ledger.rs", 90),
        ("desk.rs", 90),
        ("saga.rs", 170),
    ] {
        let lines = std::fs::read_to_string(root.join(path)).unwrap().lines().count();
        assert!(lines <= most, "{path} has {lines} lines, and at most {most} fit");
    }
}

#[test]
fn the_guide_to_flows_shows_and_counts_the_two_services_as_they_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let [instance, flow] =
        ["service.rs", "flow_service.rs"].map(|file| read(&format!("examples/webhook_timeout/{file}")));
    let guide = read("docs/flows.md");
    let row = format!("included | {} lines | {} lines |", instance.lines().count(), flow.lines().count());
    assert!(guide.contains(&row), "the guide does not say: {row}");
    let table = guide.split("<table>").nth(1).unwrap().split("</table>").next().unwrap();
    let shown: Vec<_> = table.split("```").skip(1).step_by(2).collect();
    assert_eq!(shown.len(), 2);
    for (shown, file) in shown.into_iter().zip([&instance, &flow]) {
        // Each item whole.
        for item in shown.strip_prefix("rust\n").unwrap().split("\n\n") {
            assert!(file.contains(item.trim_end()), "the file does not have this any more:\n{item}");
        }
    }
}

#[test]
fn the_guide_to_scripts_shows_those_of_the_example_as_they_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let guide = std::fs::read_to_string(root.join("docs/scripts.md")).unwrap();
    let section = guide.split("\n## ").find(|section| section.starts_with("From blocking calls")).unwrap();
    let scripts = std::fs::read_dir(root.join("examples/payments/flows")).unwrap();
    let scripts: Vec<_> = scripts.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    let shown: Vec<_> =
        section.split("```rhai example\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(shown.len() > 3, "only {} scripts are shown", shown.len());
    for script in shown {
        assert!(scripts.iter().any(|known| known == script), "the example has no such script: {script}");
    }
}

/// The sources of the flows, with texts that go over several lines joined.
fn flow_sources() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut joined = String::new();
    for source in sources(&root.join("callback-flows/src")) {
        let mut parts = source.split("\\\n");
        joined += parts.next().unwrap();
        parts.for_each(|part| joined += part.trim_start());
    }
    joined
}

#[test]
fn the_guide_to_flows_has_the_words_that_a_blocked_flow_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let guide = std::fs::read_to_string(root.join("docs/flows.md")).unwrap();
    let sources = flow_sources();
    let rows =
        guide.lines().skip_while(|line| !line.starts_with("| mistake |")).skip(2).take_while(|line| !line.is_empty());
    let mut compared = 0;
    for row in rows {
        let says = row.split(" | ").nth(1).unwrap();
        if says.starts_with("the same") {
            continue;
        }
        // What stands between its numbers, its names and what is left out.
        let parts =
            says.split(|c: char| c.is_ascii_digit() || matches!(c, '`' | '"')).flat_map(|part| part.split(".."));
        let parts: Vec<_> =
            parts.map(|part| part.trim_matches([' ', ':', ','])).filter(|part| part.len() > 7).collect();
        assert!(!parts.is_empty(), "nothing can be compared of: {says}");
        for part in parts {
            assert!(sources.contains(part), "no flow says {part:?}, of: {says}");
            compared += 1;
        }
    }
    assert!(compared > 20, "only {compared} texts were compared");
}

/// Items that an application meets first, as it is declared.
const MAIN_ITEMS: [&str; 19] = [
    "pub struct Host {",
    "pub struct HostBuilder {",
    "pub struct Interface<",
    "pub struct Context {",
    "pub trait Handle<",
    "pub trait OnAlarm:",
    "pub trait OnMessage:",
    "pub trait OnConnect:",
    "pub struct Connection<",
    "pub struct RetryPolicy {",
    "pub enum RequestError<",
    "pub struct FleetClient {",
    "pub struct Directive {",
    "pub struct PostgresStore",
    "pub struct RedisStore(",
    "pub struct FjallStore {",
    "pub trait PostgresContext {",
    "pub struct Poster {",
    "pub struct Simulation {",
];

/// The sources of a directory and all in it.
fn sources(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.extension() {
            None => sources(&path),
            Some(rs) if rs == "rs" => vec![std::fs::read_to_string(path).unwrap()],
            Some(_) => vec![],
        })
        .collect()
}

#[test]
fn each_of_the_main_items_has_an_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let sources: Vec<_> =
        ["stable-interfaces/src", "alarm-backends/src"].iter().flat_map(|part| sources(&root.join(part))).collect();
    for item in MAIN_ITEMS {
        let declared = format!("\n{item}");
        let mut found = sources.iter().filter_map(|source| source.split_once(&declared));
        let (before, _) = found.next().unwrap_or_else(|| panic!("there is no {item:?}"));
        assert!(found.next().is_none(), "{item:?} is there twice");
        // Between the comment and the item are its attributes.
        let comment = before.lines().rev().skip_while(|line| !line.starts_with("///"));
        let comment: Vec<_> = comment.take_while(|line| line.starts_with("///")).collect();
        assert!(comment.iter().filter(|line| line.starts_with("/// ```")).count() >= 2, "{item:?} has no example");
        assert!(!comment.iter().any(|line| line.contains("```ignore")), "the example of {item:?} is not compiled");
    }
}

#[test]
fn the_glossary_has_its_words_in_order_and_is_found() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let glossary = std::fs::read_to_string(root.join("docs/glossary.md")).unwrap();
    let words: Vec<_> = glossary.lines().filter_map(|line| line.strip_prefix("- **")?.split("**: ").next()).collect();
    assert!(words.len() >= 30 && words.is_sorted(), "{words:?}");
    for document in ["README.md", "ARCHITECTURE.md"] {
        assert!(std::fs::read_to_string(root.join(document)).unwrap().contains("(docs/glossary.md)"), "{document}");
    }
}

#[test]
fn every_promise_is_the_readmes_and_the_file_that_keeps_it_exists_and_has_a_header() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let words = |path: &str| std::fs::read_to_string(root.join(path)).unwrap().replace('\n', " ");
    let readme = words("README.md").split_whitespace().collect::<Vec<_>>().join(" ");
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let section = text.split("\n## ").find(|section| section.starts_with("The promises\n")).unwrap();
    let rows: Vec<_> = section.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | `")).collect();
    assert!(rows.len() >= 20, "only {rows:?}");
    for (promise, path) in &rows {
        if let Some(said) = promise.strip_prefix('"') {
            assert!(readme.contains(said.trim_end_matches('"')), "the README does not say {promise}");
        }
        let path = path.trim_end_matches("` |");
        let source = ["stable-interfaces/src", "."]
            .iter()
            .find_map(|part| std::fs::read_to_string(root.join(part).join(path)).ok());
        let source = source.unwrap_or_else(|| panic!("there is no {path}"));
        assert!(source.starts_with("//! "), "{path} does not begin with what it keeps");
    }
    // Each bold word of that section of the README is a promise.
    let guaranteed = readme.split("## What is guaranteed").nth(1).unwrap().split("What is *not*").next().unwrap();
    let promises: Vec<_> = guaranteed.split("- **").skip(1).collect();
    assert!(promises.len() >= 5, "only {promises:?}");
    for promise in promises {
        let kept = |(said, _): &(&str, &str)| promise.contains(said.trim_matches('"').trim_start_matches("**"));
        assert!(rows.iter().any(kept), "no file keeps {promise:?}");
    }
}

/// Faults that a hard look has found, by the letter of its section and how many faults that has.
const FOUND: [(char, usize); 5] = [('A', 8), ('B', 7), ('C', 10), ('D', 14), ('E', 9)];

#[test]
fn every_fault_that_a_hard_look_has_found_has_its_row_and_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let section = text.split("\n## ").find(|section| section.starts_with("What a hard look found\n")).unwrap();
    let mut rows = Vec::new();
    for row in section.lines() {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let (letter, number) = cells[0].split_at(cells[0].len().min(1));
        if !FOUND.iter().any(|(known, _)| letter.starts_with(*known)) || number.parse::<usize>().is_err() {
            continue;
        }
        assert!(!named_tests(row).is_empty(), "{} names no test", cells[0]);
        assert!(cells.len() >= 5 && cells.iter().all(|cell| !cell.is_empty()), "{} leaves a cell empty", cells[0]);
        rows.push(cells[0].to_owned());
    }
    let all = FOUND.iter().flat_map(|(letter, last)| (1..=*last).map(move |number| format!("{letter}{number}")));
    // In the order of their numbers; what was seen in two places may have two.
    rows.dedup();
    assert_eq!(rows, all.collect::<Vec<_>>());
}

/// The names that a source makes public at its top: of other modules, and of its own.
fn public_names(source: &str) -> Vec<&str> {
    let lines = source.lines().filter_map(|line| line.strip_prefix("pub "));
    let names = lines.flat_map(|line| match line.strip_prefix("use ") {
        Some(used) => used.rsplit("::").next().unwrap().trim_matches(['{', '}', ';']).split(", ").collect(),
        None => {
            let mut words = line.split([' ', '(', '<', ';']).filter(|word| *word != "async");
            vec![words.nth(1).unwrap()]
        }
    });
    names.map(|name| name.trim_end_matches(['}', ';'])).collect()
}

#[test]
fn what_one_has_to_know_of_flows_is_no_more_than_fits_into_a_head() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("callback-flows/src");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let (all, testing) = (read("lib.rs"), read("testing.rs"));
    let mut names = [public_names(&all), public_names(&testing)].concat();
    // It is there for fuzz targets alone, under a `cfg` of theirs.
    names.retain(|name| *name != "fuzzing");
    for known in ["Flow", "FlowsBuilder", "metrics", "testing", "UrlKeys", "TestFlows", "crash_everywhere"] {
        assert!(names.contains(&known), "{known} is not among {names:?}");
    }
    assert!(names.len() <= 45, "there are {}: {names:?}", names.len());
}

/// The words that no doc comment begins with: a question is explained by no riddle.
const QUESTION_WORDS: [&str; 10] = ["What", "How", "Whether", "Which", "When", "Where", "Why", "Who", "Whose", "Whom"];

/// The words that stand for a noun, which the reader of a comment's first line has not met.
const PRONOUNS: [&str; 7] = ["It", "Its", "They", "Their", "These", "This", "Those"];

/// The words that tell of a relation to something, which is what a comment is to name first.
const PREPOSITIONS: [&str; 8] = ["By", "For", "Of", "Since", "To", "Until", "With", "Without"];

/// The lines of a source on which a doc comment opens with one of these words, by their numbers.
fn openings<'a>(source: &'a str, words: &[&str]) -> Vec<(usize, &'a str)> {
    let (mut found, mut is_inside) = (Vec::new(), false);
    for (number, line) in (1..).zip(source.lines().map(str::trim_start)) {
        let comment = ["///", "//!"].iter().find_map(|mark| line.strip_prefix(mark));
        if let Some(text) = comment
            && !is_inside
        {
            let word = text.trim_start().split(|c: char| !c.is_alphanumeric()).next().unwrap();
            if words.contains(&word) {
                found.push((number, line));
            }
        }
        is_inside = comment.is_some();
    }
    found
}

/// Calls `look` with each Rust file under `folder`.
fn for_each_source(folder: &Path, look: &mut impl FnMut(&Path, &str)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            for_each_source(&path, look);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            look(&path, &std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// The places below these folders where a doc comment opens with one of these words.
fn places(folders: &[&str], words: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let (mut sources, mut found) = (0, Vec::new());
    for folder in folders {
        for_each_source(&root.join(folder), &mut |path, source| {
            sources += 1;
            let path = path.strip_prefix(root).unwrap();
            let line = |(number, line): (usize, &str)| format!("{}:{number}: {line}", path.display());
            found.extend(openings(source, words).into_iter().map(line));
        });
    }
    assert!(sources > 100, "only {sources} sources were found");
    found.join("\n")
}

#[test]
fn no_doc_comment_opens_with_a_question_word() {
    let folders = ["stable-interfaces", "alarm-backends", "callback-flows", "examples", "benches/src", "tests"];
    let found = places(&folders, &QUESTION_WORDS);
    assert!(found.is_empty(), "begin with a verb or a noun:\n{found}");
}

#[test]
fn no_doc_comment_opens_with_a_pronoun() {
    let found = places(&["stable-interfaces", "alarm-backends", "callback-flows", "examples"], &PRONOUNS);
    assert!(found.is_empty(), "begin with the noun that is meant:\n{found}");
}

#[test]
fn no_doc_comment_opens_with_a_preposition() {
    let found = places(&["stable-interfaces/src", "alarm-backends/src", "callback-flows/src"], &PREPOSITIONS);
    assert!(found.is_empty(), "begin with the noun that is meant, or a verb:\n{found}");
}

#[test]
fn a_doc_comment_that_opens_with_a_question_word_is_found_with_its_line() {
    let source = "//! Whether it is found.\n//! What follows is no opening.\n\n/// A noun.\n/// How it goes on.\nfn f() {\n\
                  \x20   /// Why: a reason.\n    x: u8,\n    // What a plain comment says.\n    /// Whoever asks.\n}\n";
    let lines: Vec<_> = openings(source, &QUESTION_WORDS).into_iter().map(|(number, _)| number).collect();
    assert_eq!(lines, [1, 7]);
}

#[test]
fn a_doc_comment_that_opens_with_a_pronoun_is_found_with_its_line() {
    let source = "/// Items.\n/// Its own line goes on.\nstruct A {\n    /// Its name.\n    name: u8,\n    // This is no doc.\n    \
                  /// It: a word.\n    it: u8,\n}\n";
    let lines: Vec<_> = openings(source, &PRONOUNS).into_iter().map(|(number, _)| number).collect();
    assert_eq!(lines, [4, 7]);
}
