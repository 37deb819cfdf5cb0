//! Secrets appear in nothing that somebody may see: a log, a span, what is printed of a value, an answer.

use std::fmt::{Debug, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use callback_flows::{Call, CallbackPolicy, UrlKeys, Verify};

use crate::app::{App, SIGNATURE, Seen};

/// Everything that is said to a subscriber, of every level.
#[derive(Debug, Clone, Default)]
struct Heard {
    text: Arc<Mutex<String>>,
    spans: Arc<AtomicU64>,
}

impl Visit for Heard {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = writeln!(self.text.lock(), "{} = {value:?} = {value:#?}", field.name());
    }
}

impl Subscriber for Heard {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let _ = writeln!(self.text.lock(), "span {}", span.metadata().name());
        span.record(&mut self.clone());
        Id::from_u64(1 + self.spans.fetch_add(1, Ordering::Relaxed))
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        values.record(&mut self.clone());
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

const SECRET: &str = "It's a Secret to Everybody";

/// Asks for all that can be refused, and gives what was answered.
async fn refused(app: &App, seen: &Seen, url: &str) -> String {
    let mut answers = String::new();
    let signed = format!("sha256={SIGNATURE}");
    let (changed, stretched) = (url.replacen('.', "-", 1), format!("{url}A"));
    for url in [url, &changed, &stretched, &format!("{url}/more"), &format!("{url}?secret={SIGNATURE}")] {
        for (body, signature) in
            [("Hello, World!", &*signed), ("Hello, World?", &*signed), ("", "sha256=0"), ("", SECRET)]
        {
            for method in ["POST", "PUT", "GET", "DELETE"] {
                let asked = app.ask(seen, method, url).header("x-hub-signature-256", signature);
                let answer = asked.header("authorization", SECRET).body(body).send().await;
                let _ = write!(answers, "{:?} {}", answer.headers, String::from_utf8_lossy(&answer.body));
            }
        }
    }
    let started =
        app.ask(seen, "PUT", "/flows/hook/other").header("authorization", SECRET).json(json!({ "a": 1 })).await;
    answers + &*String::from_utf8_lossy(&started.body)
}

#[tokio::test(start_paused = true)]
async fn secrets_and_tokens_are_in_no_log_no_span_nothing_printed_and_no_answer() {
    let heard = Heard::default();
    let _listening = tracing::subscriber::set_default(heard.clone());
    // Of one alone it is asked whether it listens on the thread that comes to a span first, which may be another test's.
    let _other = tracing::Dispatch::new(Heard::default());
    let seen = Seen::default();
    let world = Seen::default().world();
    let app = world.alone().await;
    let url = app.hook(&seen, "signed").await;
    let mut told = refused(&app, &seen, &url).await;
    world.store.set_down(true);
    told += &refused(&app, &seen, &url).await;
    world.store.set_down(false);
    tokio::time::sleep(crate::app::RETENTION).await;
    let status = app.ask(&seen, "GET", "/flows/hook/signed").send().await.is(200);
    told += &String::from_utf8_lossy(&status.body);
    let call = Call::new(SECRET).header("authorization", SECRET).id("1");
    let verify = Verify::github([SECRET]).unwrap();
    let policy = CallbackPolicy::new().verify(verify.clone());
    let keys = UrlKeys::new("k1", SECRET).unwrap();
    let _ = write!(told, "{call:?} {verify:#?} {policy:#?} {keys:#?} {:#?} {:?}", app.flows, world.builder());
    told += &heard.text.lock();
    app.host.drain(crate::app::SECOND).await;
    // Whatever the URL is made of beside its code, may be known.
    let code = url.rsplit('.').next().unwrap();
    for secret in [code, SECRET, SIGNATURE, &SIGNATURE[..16]] {
        let found = told.find(secret).map(|at| told[at.saturating_sub(200)..at + secret.len()].to_owned());
        assert_eq!(found, None, "{secret} is seen");
    }
    // Those who listen have heard of what there was.
    for word in ["span flow", "id = \"signed\"", "#unverified", "#unknown-callback", "#unavailable"] {
        assert!(told.contains(word), "{word} is not seen");
    }
}
