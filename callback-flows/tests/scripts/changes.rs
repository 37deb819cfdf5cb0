//! A library that changes while flows wait: they keep what they were started with.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use callback_flows::script::Script;
use callback_flows::testing::{TestError, TestFlows};
use callback_flows::{BlockedKind, Call, Flow};
use serde_json::{Value, json};

use crate::app::{Partner, ended, flows, functions};

/// A directory with scripts, for one test.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Directory {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("scripts-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn write(&self, script: &str, text: &str) {
        std::fs::write(self.0.join(format!("{script}.rhai")), text).unwrap();
    }

    fn remove(&self, script: &str) {
        std::fs::remove_file(self.0.join(format!("{script}.rhai"))).unwrap();
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const MAIN: &str = r#"
import "shared" as common;
let c = callback("c");
let n = c.next();
call_flow("child", #{ n: common::add(n) })
"#;

async fn waiting(directory: &Directory) -> TestFlows {
    directory.write("main", MAIN);
    directory.write("shared", "fn add(n) { n + 1 }");
    directory.write("child", "ask(n) * 10");
    let t = TestFlows::new();
    t.deploy(flows(functions(&Partner::echo()).library(directory.path()))).await.unwrap();
    t.start("script", "1", &Script::named("main")).await.unwrap();
    t.run_until_parked().await.unwrap();
    t
}

async fn call_and_end(t: &TestFlows) -> Result<Value, String> {
    t.deliver(&t.url("script", "1", "c").await, Call::new("4")).await.unwrap();
    ended(t).await
}

#[tokio::test(start_paused = true)]
async fn a_script_that_is_changed_or_removed_never_touches_a_running_flow() {
    let directory = Directory::new();
    let t = waiting(&directory).await;
    directory.write("shared", "fn add(n) { n + 100 }");
    directory.write("child", "throw \"changed\"");
    directory.remove("main");
    t.deploy(flows(functions(&Partner::echo()).library(directory.path()))).await.unwrap();
    assert_eq!(call_and_end(&t).await, Ok(json!(50)), "with the text that it was started with");
    let gone = t.start("script", "2", &Script::named("main")).await.unwrap_err();
    assert!(matches!(gone, callback_flows::FlowsError::Refused(_)), "{gone}");
}

#[tokio::test(start_paused = true)]
async fn a_host_without_the_files_goes_on_with_flows_that_wait() {
    let directory = Directory::new();
    let t = waiting(&directory).await;
    t.deploy(flows(functions(&Partner::echo()))).await.unwrap();
    t.crash().await.unwrap();
    assert_eq!(call_and_end(&t).await, Ok(json!(50)));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_no_script_any_more_keeps_a_host_from_starting_and_says_where() {
    let directory = Directory::new();
    directory.write("good", "1");
    directory.write("bad", "let a = 1;\nlet b = ;");
    let refused = functions(&Partner::echo()).library(directory.path()).check().unwrap_err();
    assert!(refused.place().starts_with("bad.rhai:2:"), "{refused}");
}

/// A flow that begins a script with whatever it is given as its stored input.
async fn spawned(row: Value) -> TestFlows {
    let t = TestFlows::new();
    let parent = |flow: Flow, row: Value| async move { Ok(flow.spawn("script", "1", &row).result::<Value>().await?) };
    let scripts = functions(&Partner::echo()).script("main", "ask(n) + 1");
    t.deploy(flows(scripts).flow("parent", 1, parent)).await.unwrap();
    t.start("parent", "p", &row).await.unwrap();
    t
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_another_flow_has_begun_takes_its_sources_when_it_begins() {
    let t = spawned(json!({ "script": "main", "args": { "n": 4 } })).await;
    assert_eq!(t.done::<Value>("parent", "p").await.unwrap(), json!(5));
    let t = spawned(json!({ "script": "mian" })).await;
    let failed = t.ended("parent", "p").await.unwrap();
    assert!(
        matches!(&failed, callback_flows::Outcome::Failed(why) if why.contains("no script \"mian\"")),
        "{failed:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_input_of_a_newer_format_or_with_other_sources_than_its_hash_says_blocks_its_flow() {
    for (row, kind, says) in [
        (json!({ "format": 2, "script": "main" }), BlockedKind::UnknownVersion, "in the format 2 by a newer version"),
        (
            json!({ "format": 1, "script": "main", "sources": { "main": "ask(1)" }, "hash": "00", "rhai": "1.27.0" }),
            BlockedKind::Unreadable,
            "their hash is another",
        ),
    ] {
        let t = spawned(row).await;
        let Err(TestError::Blocked { why, .. }) = t.ended("script", "1").await else { panic!("it is not blocked") };
        assert_eq!(why.kind(), kind);
        assert!(why.message().contains(says), "{why}");
    }
}
