//! A browser, driven over its DevTools socket: Debian's `chromium`, which `tests/run` installs when it is missing.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a browser lives in real time")]

use std::io::{BufRead, BufReader};
use std::panic::Location;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// The limit of one thing in the browser: it is there so that a test that would wait for ever fails.
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
        if (element.matches("input, textarea, button, .button")) {
            const around = behind(element.parentElement);
            const edges = [style.borderTopColor, style.backgroundColor].map(colour => ratio(over(rgba(colour), around), around));
            looked += 1;
            if (Math.max(...edges) < 3) faint.push(`${name} edge: ${edges}`);
        }
    }
    if (looked < 5) faint.push(`only ${looked} things were looked at`);
    return faint;
})()"#;

/// A browser without a window, ended with this.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    socket: WebSocketStream<TcpStream>,
    calls: u64,
    /// The directory in which pictures are kept, if they are.
    shots: Option<PathBuf>,
    _profile: tempfile::TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One page of it.
#[derive(Debug)]
pub struct Page(String);

impl Browser {
    /// Starts one, which keeps pictures in a directory if there is one for that.
    pub async fn start(shots: Option<PathBuf>) -> Browser {
        if let Some(directory) = &shots {
            std::fs::create_dir_all(directory).unwrap();
        }
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
        Browser { child, socket, calls: 0, shots, _profile: profile }
    }

    /// Calls a method of the DevTools protocol; of a page, if one is given.
    pub async fn call(&mut self, page: Option<&Page>, method: &str, params: Value) -> Value {
        let answer = self.try_call(page, method, &params).await;
        answer.unwrap_or_else(|error| panic!("{method} with {params}: {error}"))
    }

    /// The same, where it may be refused.
    async fn try_call(&mut self, page: Option<&Page>, method: &str, params: &Value) -> Result<Value, Value> {
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
        if answer["error"].is_null() { Ok(answer["result"].take()) } else { Err(answer["error"].take()) }
    }

    /// Opens a page in a window of its own, and waits until `is_there` is true of it.
    pub async fn open(&mut self, url: &str, is_there: &str) -> Page {
        let target = self.call(None, "Target.createTarget", json!({ "url": "about:blank", "newWindow": true })).await;
        let params = json!({ "targetId": target["targetId"], "flatten": true });
        let page =
            Page(self.call(None, "Target.attachToTarget", params).await["sessionId"].as_str().unwrap().to_owned());
        // As if its window were in front.
        self.call(Some(&page), "Emulation.setFocusEmulationEnabled", json!({ "enabled": true })).await;
        self.size(&page, 1_280, 800).await;
        self.call(Some(&page), "Page.navigate", json!({ "url": url })).await;
        self.until(&page, &format!("location.protocol === 'http:' && ({is_there})")).await;
        page
    }

    /// Gives a page's window a size.
    pub async fn size(&mut self, page: &Page, width: u32, height: u32) {
        let params = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call(Some(page), "Emulation.setDeviceMetricsOverride", params).await;
    }

    /// Has a page be shown in the colours of a scheme, `light` or `dark`.
    pub async fn scheme(&mut self, page: &Page, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call(Some(page), "Emulation.setEmulatedMedia", json!({ "features": features })).await;
    }

    /// The value of an expression of JavaScript.
    pub async fn eval(&mut self, page: &Page, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        let mut result = self.call(Some(page), "Runtime.evaluate", params).await;
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].take()
    }

    /// Waits for an expression to be true.
    #[track_caller]
    pub fn until<'a>(&'a mut self, page: &'a Page, expression: &'a str) -> impl Future<Output = ()> + 'a {
        self.until_at(page, expression, Location::caller())
    }

    /// The same for who asks at this place.
    pub async fn until_at(&mut self, page: &Page, expression: &str, caller: &Location<'_>) {
        let since = Instant::now();
        let params = json!({ "expression": expression, "returnByValue": true });
        loop {
            // On the way from one page to the next there is nobody to ask, or not yet what is asked for.
            let answer = self.try_call(Some(page), "Runtime.evaluate", &params).await;
            if answer.is_ok_and(|answer| answer["result"]["value"] == true) {
                return;
            }
            if since.elapsed() > PATIENCE {
                let shown = self.eval(page, "document.body.innerText").await;
                panic!("{caller}: never true: {expression}\n{}", shown.as_str().unwrap_or_default());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Presses a key and lets it go.
    pub async fn press(&mut self, page: &Page, key: &str) {
        let (key, shift) = key.strip_prefix("Shift+").map_or((key, 0), |key| (key, 8));
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            " " => (32, " "),
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
    pub async fn tab_to(&mut self, page: &Page, key: &str, selector: &str) {
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

    /// Writes where the focus is.
    pub async fn write(&mut self, page: &Page, text: &str) {
        self.call(Some(page), "Input.insertText", json!({ "text": text })).await;
    }

    /// Writes where the focus is, and ends with Enter.
    pub async fn enter(&mut self, page: &Page, text: &str) {
        self.write(page, text).await;
        self.press(page, "Enter").await;
    }

    /// The name, or else the ID, of what has the focus.
    pub async fn focus(&mut self, page: &Page) -> String {
        let focus = self
            .eval(page, "document.activeElement.name || document.activeElement.id || document.activeElement.tagName")
            .await;
        focus.as_str().unwrap().to_owned()
    }

    /// Sees that all can be read in both colour schemes and in windows of these sizes, that `fits` is true there, and that nothing is there
    /// that does nothing.
    pub async fn assert_shown_well(&mut self, page: &Page, what: &str, sizes: &[(u32, u32)], fits: &str) {
        for scheme in ["light", "dark"] {
            self.scheme(page, scheme).await;
            for (width, height) in sizes {
                self.size(page, *width, *height).await;
                self.shoot(page, &format!("{what}-{scheme}-{width}")).await;
                assert_eq!(self.eval(page, FAINT).await, json!([]), "{what}, {scheme}, {width}");
                assert_eq!(self.eval(page, fits).await, true, "{what} does not fit into {width} pixels");
            }
        }
        let controls = "[...document.querySelectorAll('input, button')].filter(control => control.checkVisibility() && control.disabled).length";
        assert_eq!(self.eval(page, controls).await, 0, "{what} has controls that do nothing");
    }

    /// Keeps a picture, if there is a directory for that.
    pub async fn shoot(&mut self, page: &Page, name: &str) {
        let Some(directory) = self.shots.clone() else { return };
        let picture = self.call(Some(page), "Page.captureScreenshot", json!({})).await;
        let path = directory.join(format!("{name}.png"));
        std::fs::write(path, STANDARD.decode(picture["data"].as_str().unwrap()).unwrap()).unwrap();
    }
}
