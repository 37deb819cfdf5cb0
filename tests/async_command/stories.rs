//! The stories of the page, in a browser. Pictures are kept in `target/screenshots/async_command`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use system_tests::browser::{Browser, Page};
use system_tests::example::Serving;
use tokio::sync::{Mutex, MutexGuard};

use super::COMMAND;

/// One browser at a time is enough for a small machine.
static BROWSER: Mutex<()> = Mutex::const_new(());

/// The sizes of windows that pictures are taken of.
const SIZES: [(u32, u32); 2] = [(360, 900), (1_280, 860)];
/// Nothing is cut off at the side.
const FITS: &str = "document.documentElement.scrollWidth <= innerWidth";
const IS_OPEN: &str = "document.readyState === 'complete' && !!document.querySelector('main')";
const AT_LOCATION: &str = "location.pathname.startsWith('/locations/') && document.readyState === 'complete'";

/// A server with its data, and a browser before it.
struct Story {
    serving: Option<Serving>,
    address: String,
    data: tempfile::TempDir,
    browser: Browser,
    _alone: MutexGuard<'static, ()>,
}

impl Story {
    async fn begin() -> Story {
        let alone = BROWSER.lock().await;
        let data = tempfile::tempdir().unwrap();
        let serving = COMMAND.serve(&["--data", &data.path().join("data").display().to_string()]);
        let address = serving.address().to_owned();
        let shots: PathBuf = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("screenshots").join("async_command");
        Story { serving: Some(serving), address, data, browser: Browser::start(Some(shots)).await, _alone: alone }
    }

    async fn open(&mut self) -> Page {
        self.browser.open(&format!("http://{}/", self.address), IS_OPEN).await
    }

    /// SIGKILL.
    fn kill(&mut self) {
        drop(self.serving.take());
    }

    fn start(&mut self) {
        let data = self.data.path().join("data").display().to_string();
        self.serving = Some(COMMAND.serve_at(&self.address, &["--data", &data]));
    }

    /// Follows a command that takes no time to its location; tells whether the page went there by itself, as it does unless this machine
    /// took more than three seconds.
    async fn arrives(&mut self, page: &Page) -> bool {
        let is_over = format!("{AT_LOCATION} || !!document.querySelector('#status a')");
        self.browser.until(page, &is_over).await;
        if self.browser.eval(page, AT_LOCATION).await == true {
            return true;
        }
        self.browser.eval(page, "document.querySelector('#status a').click()").await;
        self.browser.until(page, AT_LOCATION).await;
        false
    }

    async fn describe(&mut self, page: &Page, text: &str) {
        self.browser.eval(page, "document.querySelector('#description').select()").await;
        self.browser.write(page, text).await;
    }

    /// Fills the form by keyboard, from the name on, and sends it.
    async fn ask_for(&mut self, page: &Page, name: &str, slow: u32, fails: bool) {
        self.browser.eval(page, "document.querySelector('#name').focus()").await;
        self.browser.eval(page, "document.querySelector('#name').select()").await;
        self.browser.write(page, name).await;
        self.browser.tab_to(page, "Tab", "#slow").await;
        self.browser.write(page, &slow.to_string()).await;
        self.browser.tab_to(page, "Tab", "#fail").await;
        if self.browser.eval(page, "document.querySelector('#fail').checked").await != fails {
            self.browser.press(page, " ").await;
        }
        self.browser.tab_to(page, "Tab", "#create").await;
        self.browser.press(page, "Enter").await;
    }

    /// Waits until an element's text has a part.
    #[track_caller]
    fn until_says<'a>(&'a mut self, page: &'a Page, element: &str, part: &str) -> impl Future<Output = ()> + 'a {
        let expression = format!("document.querySelector({element:?}).textContent.includes({part:?})");
        let browser = &mut self.browser;
        let caller = std::panic::Location::caller();
        async move { browser.until_at(page, &expression, caller).await }
    }

    async fn text(&mut self, page: &Page, element: &str) -> String {
        let text = self.browser.eval(page, &format!("document.querySelector({element:?}).innerText")).await;
        text.as_str().unwrap_or_default().to_owned()
    }

    /// The names in the list, each with what is said beside it.
    async fn list(&mut self, page: &Page) -> Value {
        let rows = "[...document.querySelectorAll('#list li')].map(row => [row.children[0].innerText, row.children[1].innerText])";
        self.browser.eval(page, rows).await
    }

    async fn focus(&mut self, page: &Page) -> String {
        self.browser.focus(page).await
    }

    async fn shown_well(&mut self, page: &Page, what: &str) {
        self.browser.assert_shown_well(page, what, &SIZES, FITS).await;
        self.browser.scheme(page, "light").await;
        self.browser.size(page, 1_280, 860).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Debian's chromium: tests/run async_command"]
async fn a_person_who_creates_a_location_is_taken_to_it_by_the_event() {
    let mut story = Story::begin().await;
    let page = story.open().await;
    story.shown_well(&page, "1-empty").await;
    story.describe(&page, "Seven hills, a river, and light.").await;
    story.ask_for(&page, "Lisbon", 0, false).await;
    let mut is_taken = story.arrives(&page).await;
    assert_eq!(story.text(&page, "h1").await, "Lisbon");
    story.shown_well(&page, "2-location").await;
    // Back at the form, it is empty, and the location is there once.
    story.browser.tab_to(&page, "Tab", "a.button").await;
    story.browser.press(&page, "Enter").await;
    story.browser.until(&page, "location.pathname === '/' && document.readyState === 'complete'").await;
    assert_eq!(story.browser.eval(&page, "document.querySelector('#name').value").await, "");
    let list = story.list(&page).await;
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(story.text(&page, "#status").await, "");
    assert_eq!(story.browser.eval(&page, "JSON.parse(localStorage.commands).length").await, 0);
    // Another one goes before it, and that may be asked for meanwhile.
    story.describe(&page, "Terraces, boats, and the wine of its name.").await;
    story.ask_for(&page, "Porto", 600, false).await;
    story.until_says(&page, "#status", "will be ready shortly").await;
    story.ask_for(&page, "Sagres", 0, false).await;
    is_taken |= story.arrives(&page).await;
    let page = story.open().await;
    story.until_says(&page, "#list", "aiting for the surveyor").await;
    let names: Vec<_> = story.list(&page).await.as_array().unwrap().iter().map(|row| row[0].clone()).collect();
    assert_eq!(names, ["Porto", "Sagres", "Lisbon"]);
    story.shown_well(&page, "2-several").await;
    for name in ["Tomar", "Braga", "Viseu"] {
        if !is_taken {
            story.ask_for(&page, name, 0, false).await;
            is_taken = story.arrives(&page).await;
            story.browser.eval(&page, "location.assign('/')").await;
            story.browser.until(&page, "location.pathname === '/' && document.readyState === 'complete'").await;
        }
    }
    assert!(is_taken, "nobody is taken to what was made, or this machine needs three seconds for it each time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Debian's chromium: tests/run async_command"]
async fn a_slow_one_will_be_ready_shortly_and_tells_when_it_is_though_the_host_is_killed() {
    let mut story = Story::begin().await;
    let page = story.open().await;
    story.ask_for(&page, "Porto", 12, false).await;
    story.until_says(&page, "#status", "Creating “Porto”").await;
    story.browser.shoot(&page, "3-creating").await;
    story.until_says(&page, "#status", "will be ready shortly. You may leave this page").await;
    // A second tab, and a reload, show it once.
    let twin = story.open().await;
    story.until_says(&twin, "#list", "Porto").await;
    story.browser.call(Some(&page), "Page.reload", json!({})).await;
    story.until_says(&page, "#status", "will be ready shortly").await;
    for page in [&page, &twin] {
        assert_eq!(story.list(page).await, json!([["Porto", "Creating…"]]));
    }
    story.shown_well(&page, "4-slow").await;
    story.kill();
    story.until_says(&page, "#lost", "The connection is lost").await;
    story.shown_well(&page, "5-lost").await;
    story.start();
    story.browser.until(&page, "document.querySelector('#lost').textContent === ''").await;
    story.until_says(&page, "#status", "“Porto” is ready. Go there").await;
    story.until_says(&twin, "#list", "Ready").await;
    for page in [&page, &twin] {
        assert_eq!(story.list(page).await, json!([["Porto", "Ready"]]));
    }
    assert_eq!(story.text(&twin, "#news").await.matches("“Porto” is ready").count(), 1);
    assert_eq!(
        story.browser.eval(&page, "location.pathname").await,
        "/",
        "nobody is taken away who was told not to wait"
    );
    story.shown_well(&page, "6-ready").await;
    story.browser.eval(&page, "document.querySelector('#status a').click()").await;
    story.browser.until(&page, AT_LOCATION).await;
    story.browser.call(Some(&twin), "Page.reload", json!({})).await;
    story.until_says(&twin, "#list", "Plot").await;
    assert_eq!(story.list(&twin).await.as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Debian's chromium: tests/run async_command"]
async fn one_that_fails_while_the_host_is_killed_says_why_and_keeps_the_form_filled() {
    let mut story = Story::begin().await;
    let page = story.open().await;
    story.ask_for(&page, "Atlantis", 5, true).await;
    story.until_says(&page, "#list", "waiting for the surveyor").await;
    story.kill();
    story.until_says(&page, "#lost", "The connection is lost").await;
    story.start();
    story.until_says(&page, "#failed", "no firm ground").await;
    assert_eq!(story.focus(&page).await, "failed");
    let filled =
        "['name', 'slow'].map(id => document.getElementById(id).value).concat(document.querySelector('#fail').checked)";
    assert_eq!(story.browser.eval(&page, filled).await, json!(["Atlantis", "5", true]));
    assert_eq!(story.list(&page).await, json!([]), "it is said in one place");
    story.browser.until(&page, "document.querySelector('#lost').textContent === ''").await;
    story.shown_well(&page, "7-failed").await;
    story.browser.call(Some(&page), "Page.reload", json!({})).await;
    story.until_says(&page, "#failed", "no firm ground").await;
    assert_eq!(story.browser.eval(&page, filled).await, json!(["Atlantis", "5", true]));
    // It was undone, so the name is free for another try.
    story.ask_for(&page, "Atlantis", 0, false).await;
    story.arrives(&page).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Debian's chromium: tests/run async_command"]
async fn a_name_that_is_taken_is_said_at_the_field() {
    let mut story = Story::begin().await;
    let page = story.open().await;
    story.ask_for(&page, "Faro", 0, false).await;
    story.arrives(&page).await;
    let page = story.open().await;
    story.ask_for(&page, "faro", 0, false).await;
    story.until_says(&page, "#name-wrong", "Another location has this name.").await;
    assert_eq!(story.focus(&page).await, "name");
    let field = "(({value, ariaInvalid}) => [value, ariaInvalid])(document.querySelector('#name'))";
    assert_eq!(story.browser.eval(&page, field).await, json!(["faro", "true"]));
    story.shown_well(&page, "8-taken").await;
    // So is what the server finds wrong before it takes anything.
    story.ask_for(&page, " ", 0, false).await;
    story.until_says(&page, "#name-wrong", "A location needs a name.").await;
    story.ask_for(&page, "Lagos", 601, false).await;
    story.until_says(&page, "#slow-wrong", "at most 600 seconds").await;
    assert_eq!(story.text(&page, "#name-wrong").await, "");
    // One that was a mistake is cancelled, and is nowhere then.
    story.ask_for(&page, "Lagos", 600, false).await;
    story.until_says(&page, "#list", "Cancel").await;
    story.browser.tab_to(&page, "Tab", "#list button").await;
    story.browser.press(&page, "Enter").await;
    story.until_says(&page, "#status", "“Lagos” was cancelled").await;
    assert_eq!(story.focus(&page).await, "name", "the focus does not fall to the body");
    assert_eq!(story.list(&page).await.as_array().map(Vec::len), Some(1));
    story.ask_for(&page, "Lagos", 0, false).await;
    story.arrives(&page).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Debian's chromium: tests/run async_command"]
async fn what_is_sent_while_nobody_is_there_is_sent_when_somebody_is_and_shown_once() {
    let mut story = Story::begin().await;
    let page = story.open().await;
    let twin = story.open().await;
    story.kill();
    story.ask_for(&page, "Évora", 0, false).await;
    story.until_says(&page, "#lost", "The connection is lost").await;
    story.until_says(&page, "#status", "will be ready shortly").await;
    story.until_says(&twin, "#list", "Évora").await;
    story.start();
    story.until_says(&page, "#status", "“Évora” is ready").await;
    story.until_says(&twin, "#list", "Ready").await;
    for page in [&page, &twin] {
        assert_eq!(story.list(page).await, json!([["Évora", "Ready"]]));
        story.browser.call(Some(page), "Page.reload", json!({})).await;
        story.until_says(page, "#list", "Plot").await;
        assert_eq!(story.list(page).await.as_array().map(Vec::len), Some(1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Debian's chromium: tests/run async_command"]
async fn of_many_at_once_each_ends_right_and_one_that_failed_can_be_sent_again() {
    let mut story = Story::begin().await;
    let page = story.open().await;
    // More than it listens to: of the others it asks for the status.
    let many = "for (const n of [1, 2, 3, 4, 5]) {
        const input = {name: `Beja ${n}`, description: '', slow: 1, fail: n === 3 ? 1 : 0};
        commands.add({id: `beja-${n}`, input, state: 'sending', at: Date.now(), heard: 0});
    }
    go()";
    story.browser.eval(&page, many).await;
    story.browser.until(&page, "document.querySelectorAll('#list .ready').length === 4").await;
    story.until_says(&page, "#list", "no firm ground").await;
    assert_eq!(story.list(&page).await.as_array().map(Vec::len), Some(5));
    story.shown_well(&page, "8-many").await;
    story.browser.eval(&page, "document.querySelector('#list li .do button').focus()").await;
    story.browser.press(&page, "Enter").await;
    assert_eq!(story.focus(&page).await, "name");
    let filled = "[document.querySelector('#name').value, document.querySelector('#fail').checked]";
    assert_eq!(story.browser.eval(&page, filled).await, json!(["Beja 3", true]));
    assert_eq!(story.list(&page).await.as_array().map(Vec::len), Some(4));
    story.ask_for(&page, "Beja 3", 0, false).await;
    story.arrives(&page).await;
    assert_eq!(story.text(&page, "h1").await, "Beja 3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Debian's chromium: tests/run async_command"]
async fn without_javascript_the_form_leads_to_the_location_all_the_same() {
    let mut story = Story::begin().await;
    let page = story.open().await;
    story.browser.call(Some(&page), "Emulation.setScriptExecutionDisabled", json!({ "value": true })).await;
    story.browser.call(Some(&page), "Page.reload", json!({})).await;
    story.browser.until(&page, IS_OPEN).await;
    story.ask_for(&page, "Sintra", 3, false).await;
    story.browser.until(&page, "location.pathname.startsWith('/commands/')").await;
    story.until_says(&page, "h1", "Creating Sintra").await;
    story.shown_well(&page, "9-without-javascript").await;
    story.browser.until(&page, AT_LOCATION).await;
    assert_eq!(story.text(&page, "h1").await, "Sintra");
}
