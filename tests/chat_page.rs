//! The page of the example `chat_room`, in a browser and by keyboard alone: Debian's `chromium`, which `tests/run chat_page`
//! installs when it is missing.
//!
//! `SHOTS=DIR` keeps pictures of what it looks like on the way.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use system_tests::browser::{Browser, Page};
use system_tests::example::Example;

static CHAT: Example = Example::new("chat_room");

/// Says whether the last line of the room can be seen.
const SHOWS_LAST: &str = r##"(() => {
    const [log, last] = [document.querySelector("#log"), document.querySelector("#log li:last-child")];
    return last.getBoundingClientRect().bottom <= log.getBoundingClientRect().bottom + 1;
})()"##;

/// Joins under a name: the page is open, and the focus where it is then.
async fn join(browser: &mut Browser, page: &Page, name: &str) {
    browser.enter(page, name).await;
    browser.until(page, "document.querySelector('#state').textContent === 'Connected'").await;
    assert_eq!(browser.focus(page).await, "text", "the next thing is to say something");
}

/// Sees that all can be read, and that there is no more of it than fits into the window.
async fn assert_shown_well(browser: &mut Browser, page: &Page, what: &str) {
    let fits =
        "document.documentElement.scrollWidth <= innerWidth && document.documentElement.scrollHeight <= innerHeight";
    browser.assert_shown_well(page, what, &[(360, 640), (1_280, 800)], fits).await;
}

/// Opens the page. The focus comes with the first picture, a moment after all has been loaded.
async fn open(browser: &mut Browser, url: &str) -> Page {
    browser.open(url, "document.activeElement?.name === 'name'").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Debian's chromium: tests/run chat_page"]
async fn the_page_is_walked_by_keyboard_and_all_of_it_can_be_read_in_both_colour_schemes() {
    let data = tempfile::tempdir().unwrap();
    let rooms = data.path().join("rooms").display().to_string();
    let serving = CHAT.serve(&["--data", &rooms]);
    let address = serving.address().to_owned();
    let url = format!("http://{address}/");
    let mut browser = Browser::start(std::env::var_os("SHOTS").map(Into::into)).await;

    let ann = open(&mut browser, &url).await;
    assert_shown_well(&mut browser, &ann, "join").await;
    // A name that no room takes: the reason is there, and the focus where it can be mended.
    browser.enter(&ann, "a\u{1}b").await;
    browser.until(&ann, "document.querySelector('#told').textContent.startsWith('Not let in: ')").await;
    assert_eq!(browser.focus(&ann).await, "name");
    assert_shown_well(&mut browser, &ann, "refused").await;
    join(&mut browser, &ann, "ann").await;
    assert_eq!(
        browser.eval(&ann, "document.querySelector('#join').checkVisibility()").await,
        false,
        "no dead form in a room"
    );

    // What is said is brought into view, is told from what others say, and has its time.
    browser.enter(&ann, "hello").await;
    browser.until(&ann, "!!document.querySelector('#log .own:not(.unsent) time')").await;
    let bob = open(&mut browser, &url).await;
    join(&mut browser, &bob, "bob").await;
    browser.until(&ann, "document.querySelector('#who b').textContent === '2 here'").await;
    let who = browser.eval(&ann, "document.querySelector('#who').innerText").await;
    assert!(who.as_str().unwrap().contains("ann (you)") && who.as_str().unwrap().contains("bob"), "{who}");
    for n in 0..40 {
        browser
            .enter(&bob, &format!("message {n} of many, long enough that it may take more than one line at 360 pixels"))
            .await;
    }
    browser.until(&ann, "document.querySelectorAll('#log .other').length === 40").await;
    assert_eq!(browser.eval(&ann, SHOWS_LAST).await, true, "who reads at the end sees what comes");
    assert_eq!(browser.eval(&bob, SHOWS_LAST).await, true, "what one says oneself is in view");
    let sides =
        "['own', 'other'].map(kind => getComputedStyle(document.querySelector(`#log .${kind} .text`)).backgroundColor)";
    let sides = browser.eval(&ann, sides).await;
    assert_ne!(sides[0], sides[1], "own and others' look different");
    let alone = "[...document.querySelectorAll('#log .said')].every(item => item.querySelector('time').dateTime && item.querySelector('.who').textContent)";
    assert_eq!(browser.eval(&ann, alone).await, true, "each has its time and its name");
    assert_shown_well(&mut browser, &ann, "room").await;
    browser.until(&ann, SHOWS_LAST).await;

    // Who reads further up stays there, is told what came, and gets there by keyboard.
    browser.tab_to(&ann, "Shift+Tab", "#log").await;
    browser.press(&ann, "Home").await;
    browser.until(&ann, "document.querySelector('#log').scrollTop === 0").await;
    browser.enter(&bob, "are you there?").await;
    browser.until(&ann, "document.querySelector('#newer').checkVisibility()").await;
    browser.enter(&bob, "hello?").await;
    browser.until(&ann, "document.querySelector('#newer').textContent.startsWith('2 new messages')").await;
    assert_eq!(browser.eval(&ann, "document.querySelector('#log').scrollTop").await, 0, "it stays where it is read");
    assert_shown_well(&mut browser, &ann, "unread").await;
    browser.tab_to(&ann, "Tab", "#newer").await;
    browser.press(&ann, "Enter").await;
    browser.until(&ann, SHOWS_LAST).await;
    assert_eq!(browser.eval(&ann, "document.querySelector('#newer').checkVisibility()").await, false);
    assert_eq!(browser.focus(&ann).await, "text");
    browser.tab_to(&ann, "Shift+Tab", "#log").await;
    browser.press(&ann, "Home").await;
    browser.until(&ann, "document.querySelector('#log').scrollTop === 0").await;
    browser.tab_to(&ann, "Tab", "[name=text]").await;
    browser.enter(&ann, "here I am").await;
    browser.until(&ann, "document.querySelector('#log li:last-child .text').textContent.startsWith('here I am')").await;
    browser.until(&ann, SHOWS_LAST).await;
    browser.enter(&ann, &"ü".repeat(2_049)).await;
    browser.until(&ann, "document.querySelector('#wrong').textContent.includes('too long')").await;
    assert_shown_well(&mut browser, &ann, "too-long").await;
    assert_eq!(
        browser.eval(&ann, "document.querySelector('[name=text]').value.length").await,
        2_049,
        "it can be mended"
    );
    browser.eval(&ann, "document.querySelector('[name=text]').select()").await;
    browser.enter(&ann, "shorter").await;
    browser.until(&ann, "!document.querySelector('#wrong').checkVisibility()").await;

    // The host is killed: that is seen, what is written meanwhile waits, and goes when it is back.
    drop(serving);
    browser.until(&ann, "document.querySelector('#state').dataset.is === 'lost'").await;
    browser.enter(&ann, "into the dark").await;
    browser.until(&ann, "!!document.querySelector('#log .unsent')").await;
    assert_shown_well(&mut browser, &ann, "lost").await;
    let serving = CHAT.serve_at(&address, &["--data", &rooms]);
    browser.until(&ann, "document.querySelector('#state').dataset.is === 'connected'").await;
    browser
        .until(&bob, "document.querySelector('#log li:last-child .text')?.textContent.startsWith('into the dark')")
        .await;
    browser.until(&ann, "!document.querySelector('#log .unsent')").await;

    // Two windows of one name: each says so, and what leaves in one has left in both.
    let twin = open(&mut browser, &url).await;
    join(&mut browser, &twin, "ann").await;
    browser.until(&twin, "document.querySelector('#note').innerText.includes('another window')").await;
    assert_shown_well(&mut browser, &twin, "twin").await;
    browser.enter(&twin, "from elsewhere").await;
    let elsewhere = "document.querySelector('#log li:last-child').innerText.startsWith('You, in another window')";
    browser.until(&ann, elsewhere).await;
    browser.tab_to(&twin, "Shift+Tab", "#note button").await;
    browser.press(&twin, "Enter").await;
    assert_eq!(browser.eval(&twin, "document.querySelector('#note').checkVisibility()").await, false);
    assert_eq!(browser.focus(&twin).await, "text");
    browser.tab_to(&twin, "Shift+Tab", "#leave").await;
    browser.press(&twin, "Enter").await;
    browser.until(&twin, "document.querySelector('#told').textContent === 'You have left lobby.'").await;
    browser
        .until(&ann, "document.querySelector('#told').textContent === 'You have left lobby in another window.'")
        .await;
    for page in [&ann, &twin] {
        assert_eq!(browser.focus(page).await, "room", "the focus does not fall to the body");
    }
    assert_shown_well(&mut browser, &ann, "left").await;
    browser.until(&bob, "document.querySelector('#who b').textContent === '1 here'").await;
    assert!(
        browser.eval(&bob, "document.querySelector('#log').innerText").await.as_str().unwrap().contains("ann left")
    );

    // And back in, by keyboard, into a room whose name a path would have lost.
    browser.enter(&ann, "..").await;
    browser.until(&ann, "document.querySelector('#state').textContent === 'Connected'").await;
    assert_eq!(browser.eval(&ann, "document.querySelector('#room h1').textContent").await, "..");
    drop(serving);
}
