//! What the documents say of the tests is true.

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
fn every_fault_of_the_reliability_document_names_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let is_row = |line: &&str| line.starts_with("| ") && line[2..].starts_with(|c: char| c.is_ascii_digit());
    let mut seen = BTreeSet::new();
    for row in text.lines().filter(is_row) {
        let number: u32 = row[2..].split(' ').next().unwrap().parse().unwrap();
        assert!(seen.insert(number), "{number} is there twice");
        assert!(!named_tests(row).is_empty(), "fault {number} names no test");
    }
    assert!(seen.len() > 30, "only {seen:?}");
}
