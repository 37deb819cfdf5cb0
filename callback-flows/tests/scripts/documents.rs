//! Every script in the documents compiles, and calls what is there.

use std::path::Path;

use crate::app::{Partner, functions};

/// The scripts of a document, with the lines that they begin in.
fn scripts(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        if line.trim() == "```rhai" {
            let script: Vec<_> = lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```").collect();
            found.push((at + 2, script.join("\n")));
        }
    }
    found
}

#[test]
fn every_script_in_the_documents_is_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut number = 0;
    for document in ["README.md", "ARCHITECTURE.md", "docs/flows.md", "docs/http.md", "docs/scripts.md"] {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        for (line, script) in scripts(&text) {
            let script: &'static str = Box::leak(script.into_boxed_str());
            // Those that its answers begin are beside it, and not in the document.
            let beside = functions(&Partner::echo())
                .script("new_create_payment_intent_response", "parsed_data")
                .script("new_create_payment_intent_error", "parsed_error")
                .script("new_create_customer_response", "parsed_data")
                .script("new_create_customer_error", "parsed_error");
            let checked = beside.script("main", script).check();
            assert!(checked.is_ok(), "{document}, line {line}: {}", checked.unwrap_err());
            number += 1;
        }
    }
    assert!(number >= 3, "only {number}");
}
