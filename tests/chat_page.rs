//! The page of the example `chat_room`, in a browser and by keyboard alone: Debian's `chromium`, which `tests/run chat_page`
//! installs when it is missing.
//!
//! `SHOTS=DIR` keeps pictures of what it looks like on the way.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a browser lives in real time")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use system_tests::example::Example;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

static CHAT: Example = Example::new("chat_room");

/// How long the browser may take for one thing: it is there so that a test that would wait for ever fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks at every text and every control that can be seen, and lists those that stand out too little (WCAG 2.2, 1.4.3 and 1.4.11).
const FAINT: &str = r#"(() => {
    const rgba = text => {
        const [r, g, b, a] = text.match(/[\d.]+/g).map(Number);
        if (!text.startsWith("rgb")) throw `a colour that this cannot read: ${text}`;
        return [r, g, b, a ?? 1];
    };
    const over = ([r, g, b, a], [x, y, z]) => [r * a + x * (1 - a), g * a + y * (1 - a), b * a + z * (1 - a), 1];
    const behind = element => {
        const own = element ? rgba(getComputedStyle(element).backgroundColor) : [255, 255, 255, 1];
        return own[3] === 1 ? own : over(own, behind(element.parentElement));
    };
    const light = colour => {
        const [r, g, b] = colour.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((x, y) => y - x); return (x + 0.05) / (y + 0.05); };
    const faint = [];
    let looked = 0;
    const look = (what, colour, back, least) => {
        looked += 1;
        const found = ratio(over(rgba(colour), back), back);
        if (found < least) faint.push(`${what}: ${found.toFixed(2)} of ${least}`);
    };
    for (const element of document.body.querySelectorAll("*")) {
        if (!element.checkVisibility({visibilityProperty: true}) || element.closest("script, style")) continue;
        const style = getComputedStyle(element), name = `${element.tagName} ${element.id} ${element.className}`;
        if (style.opacity !== "1") faint.push(`${name}: it can be seen through`);
        const text = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (text || element.value) look(`${name} "${element.textContent.trim().slice(0, 20)}"`, style.color, behind(element), 4.5);
        if (element.placeholder) look(`${name} placeholder`, getComputedStyle(element, "::placeholder").color, behind(element), 4.5);
        if (element.matches("input, button")) {
            const around = behind(element.parentElement);
            const edges = [style.borderTopColor, style.backgroundColor].map(colour => ratio(over(rgba(colour), around), around));
            looked += 1;
            if (Math.max(...edges) < 3) faint.push(`${name} edge: ${edges}`);
        }
    }
    if (looked < 5) faint.push(`only ${looked} things were looked at`);
    return faint;
})()"#;

/// Says whether the last line of the room can be seen.
const SHOWS_LAST: &str = r##"(() => {
    const [log, last] = [document.querySelector("#log"), document.querySelector("#log li:last-child")];
    return last.getBoundingClientRect().bottom <= log.getBoundingClientRect().bottom + 1;
})()"##;

/// A browser without a window, ended with this.
struct Browser {
    child: Child,
    socket: WebSocketStream<TcpStream>,
    calls: u64,
    _profile: tempfile::TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One page of it.
struct Page(String);

impl Browser {
    async fn start() -> Browser {
        let profile = tempfile::tempdir().unwrap();
        let mut child = Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-dev-shm-usage", "--remote-debugging-port=0", "--lang=en-GB", "about:blank"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("no browser ({error}): sudo apt-get install -y chromium"));
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let url = loop {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "the browser has ended");
            if let Some(url) = line.trim().strip_prefix("DevTools listening on ") {
                break url.to_owned();
            }
        };
        // What else it says is of no interest, but must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        let address = url.strip_prefix("ws://").unwrap().split('/').next().unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let (socket, _) = tokio_tungstenite::client_async(&url, stream).await.unwrap();
        Browser { child, socket, calls: 0, _profile: profile }
    }

    /// Calls a method of the DevTools protocol; of a page, if one is given.
    async fn call(&mut self, page: Option<&Page>, method: &str, params: Value) -> Value {
        self.calls += 1;
        let mut call = json!({ "id": self.calls, "method": method, "params": params });
        if let Some(Page(session)) = page {
            call["sessionId"] = json!(session);
        }
        let answered = async {
            self.socket.send(Message::text(call.to_string())).await.unwrap();
            while let Some(message) = self.socket.next().await {
                let Message::Text(text) = message.unwrap() else { continue };
                let answer: Value = serde_json::from_str(&text).unwrap();
                if answer["id"] == self.calls {
                    return answer;
                }
            }
            panic!("the browser has gone away");
        };
        let mut answer = timeout(PATIENCE, answered).await.unwrap_or_else(|_| panic!("no answer to {call}"));
        assert!(answer["error"].is_null(), "{call}: {answer}");
        answer["result"].take()
    }

    async fn open(&mut self, url: &str) -> Page {
        let target = self.call(None, "Target.createTarget", json!({ "url": "about:blank", "newWindow": true })).await;
        let params = json!({ "targetId": target["targetId"], "flatten": true });
        let page =
            Page(self.call(None, "Target.attachToTarget", params).await["sessionId"].as_str().unwrap().to_owned());
        // As if its window were in front.
        self.call(Some(&page), "Emulation.setFocusEmulationEnabled", json!({ "enabled": true })).await;
        self.size(&page, 1_280, 800).await;
        self.call(Some(&page), "Page.navigate", json!({ "url": url })).await;
        // The focus comes with the first picture, a moment after all has been loaded.
        self.until(&page, "location.protocol === 'http:' && document.activeElement?.name === 'name'").await;
        page
    }

    async fn size(&mut self, page: &Page, width: u32, height: u32) {
        let params = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call(Some(page), "Emulation.setDeviceMetricsOverride", params).await;
    }

    async fn scheme(&mut self, page: &Page, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call(Some(page), "Emulation.setEmulatedMedia", json!({ "features": features })).await;
    }

    /// The value of an expression of JavaScript.
    async fn eval(&mut self, page: &Page, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        let mut result = self.call(Some(page), "Runtime.evaluate", params).await;
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].take()
    }

    /// Waits for an expression to be true.
    #[track_caller]
    fn until<'a>(&'a mut self, page: &'a Page, expression: &'a str) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let since = Instant::now();
            while self.eval(page, expression).await != true {
                if since.elapsed() > PATIENCE {
                    let shown = self.eval(page, "document.body.innerText").await;
                    panic!("{caller}: never true: {expression}\n{}", shown.as_str().unwrap_or_default());
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Presses a key and lets it go.
    async fn press(&mut self, page: &Page, key: &str) {
        let (key, shift) = key.strip_prefix("Shift+").map_or((key, 0), |key| (key, 8));
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            "End" => (35, ""),
            "Home" => (36, ""),
            other => panic!("no key {other}"),
        };
        let event = |kind: &str, text: &str| json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": shift, "text": text });
        self.call(
            Some(page),
            "Input.dispatchKeyEvent",
            event(if text.is_empty() { "rawKeyDown" } else { "keyDown" }, text),
        )
        .await;
        self.call(Some(page), "Input.dispatchKeyEvent", event("keyUp", "")).await;
    }

    /// Goes on to what `selector` finds, by the key Tab alone, and sees where it is at each step.
    async fn tab_to(&mut self, page: &Page, key: &str, selector: &str) {
        for _ in 0..12 {
            self.press(page, key).await;
            let at = self.eval(page, "document.activeElement.outerHTML.slice(0, 80)").await;
            let ring = "(({outlineStyle: style, outlineWidth: width}) => style === 'solid' && parseFloat(width) >= 2)(getComputedStyle(document.activeElement))";
            if self.eval(page, "document.activeElement !== document.body").await == true {
                assert_eq!(self.eval(page, ring).await, true, "nobody sees that this has the focus: {at}");
            }
            if self.eval(page, &format!("document.activeElement.matches({selector:?})")).await == true {
                return;
            }
        }
        panic!("{selector} is not reached by {key}");
    }

    async fn write(&mut self, page: &Page, text: &str) {
        self.call(Some(page), "Input.insertText", json!({ "text": text })).await;
    }

    /// Writes where the focus is, and ends with Enter.
    async fn enter(&mut self, page: &Page, text: &str) {
        self.write(page, text).await;
        self.press(page, "Enter").await;
    }

    /// Joins under a name: the page is open, and the focus where it is then.
    async fn join(&mut self, page: &Page, name: &str) {
        self.enter(page, name).await;
        self.until(page, "document.querySelector('#state').textContent === 'Connected'").await;
        assert_eq!(self.focus(page).await, "text", "the next thing is to say something");
    }

    /// The name, or else the ID, of what has the focus.
    async fn focus(&mut self, page: &Page) -> String {
        let focus = self
            .eval(page, "document.activeElement.name || document.activeElement.id || document.activeElement.tagName")
            .await;
        focus.as_str().unwrap().to_owned()
    }

    /// Sees that all can be read in both colour schemes and at both ends of the widths, and nothing is there that does nothing.
    async fn assert_shown_well(&mut self, page: &Page, what: &str) {
        for scheme in ["light", "dark"] {
            self.scheme(page, scheme).await;
            for (width, height) in [(360, 640), (1_280, 800)] {
                self.size(page, width, height).await;
                self.shoot(page, &format!("{what}-{scheme}-{width}")).await;
                assert_eq!(self.eval(page, FAINT).await, json!([]), "{what}, {scheme}, {width}");
                let fits = "document.documentElement.scrollWidth <= innerWidth && document.documentElement.scrollHeight <= innerHeight";
                assert_eq!(self.eval(page, fits).await, true, "{what} does not fit into {width} pixels");
            }
        }
        let controls = "[...document.querySelectorAll('input, button')].filter(control => control.checkVisibility() && control.disabled).length";
        assert_eq!(self.eval(page, controls).await, 0, "{what} has controls that do nothing");
    }

    /// Keeps a picture, if asked to.
    async fn shoot(&mut self, page: &Page, name: &str) {
        let Some(directory) = std::env::var_os("SHOTS") else { return };
        let picture = self.call(Some(page), "Page.captureScreenshot", json!({})).await;
        let path = std::path::Path::new(&directory).join(format!("{name}.png"));
        std::fs::write(path, base64(picture["data"].as_str().unwrap())).unwrap();
    }
}

/// Bytes from base64 (RFC 4648, section 4).
fn base64(text: &str) -> Vec<u8> {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut bytes) = (0_u32, 0, Vec::new());
    for digit in text.bytes().filter_map(|byte| digits.iter().position(|digit| *digit == byte)) {
        bits = bits << 6 | u32::try_from(digit).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).unwrap());
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Debian's chromium: tests/run chat_page"]
async fn the_page_is_walked_by_keyboard_and_all_of_it_can_be_read_in_both_colour_schemes() {
    let data = tempfile::tempdir().unwrap();
    let rooms = data.path().join("rooms").display().to_string();
    let serving = CHAT.serve(&["--data", &rooms]);
    let address = serving.address().to_owned();
    let url = format!("http://{address}/");
    let mut browser = Browser::start().await;

    let ann = browser.open(&url).await;
    browser.assert_shown_well(&ann, "join").await;
    // A name that no room takes: the reason is there, and the focus where it can be mended.
    browser.enter(&ann, "a\u{1}b").await;
    browser.until(&ann, "document.querySelector('#told').textContent.startsWith('Not let in: ')").await;
    assert_eq!(browser.focus(&ann).await, "name");
    browser.assert_shown_well(&ann, "refused").await;
    browser.join(&ann, "ann").await;
    assert_eq!(
        browser.eval(&ann, "document.querySelector('#join').checkVisibility()").await,
        false,
        "no dead form in a room"
    );

    // What is said is brought into view, is told from what others say, and has its time.
    browser.enter(&ann, "hello").await;
    browser.until(&ann, "!!document.querySelector('#log .own:not(.unsent) time')").await;
    let bob = browser.open(&url).await;
    browser.join(&bob, "bob").await;
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
    browser.assert_shown_well(&ann, "room").await;
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
    browser.assert_shown_well(&ann, "unread").await;
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
    browser.assert_shown_well(&ann, "too-long").await;
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
    browser.assert_shown_well(&ann, "lost").await;
    let serving = CHAT.serve_at(&address, &["--data", &rooms]);
    browser.until(&ann, "document.querySelector('#state').dataset.is === 'connected'").await;
    browser
        .until(&bob, "document.querySelector('#log li:last-child .text')?.textContent.startsWith('into the dark')")
        .await;
    browser.until(&ann, "!document.querySelector('#log .unsent')").await;

    // Two windows of one name: each says so, and what leaves in one has left in both.
    let twin = browser.open(&url).await;
    browser.join(&twin, "ann").await;
    browser.until(&twin, "document.querySelector('#note').innerText.includes('another window')").await;
    browser.assert_shown_well(&twin, "twin").await;
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
    browser.assert_shown_well(&ann, "left").await;
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
