//! A client: requests whose answers are looked at whole, and streams of events. It follows no redirect, and repeats nothing.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use axum::http::{HeaderMap, Method};
use examples::client_that_stays;
use reqwest::Url;
use serde_json::Value;

/// The limit of one request; one that waits is answered after 30 s at the latest.
const LIMIT: Duration = Duration::from_secs(35);
/// The limit of a stream.
const STREAM: Duration = Duration::from_secs(60);

pub(crate) const JSON: &str = "application/json";
pub(crate) const FORM: &str = "application/x-www-form-urlencoded";

#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    /// A header; empty if it is not there.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as JSON; `null` if it is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// Sees that it has this status.
    pub(crate) fn with(self, status: u16) -> Result<Answer> {
        ensure!(self.status == status, "{} in place of {status}: {}", self.status, self.text);
        Ok(self)
    }

    /// Sees that it is a problem with this status, about this field if there is one to be.
    pub(crate) fn problem(self, status: u16, field: Option<&str>) -> Result<Answer> {
        let answer = self.with(status)?;
        let (kind, problem) = (answer.header("content-type"), answer.json());
        ensure!(kind == "application/problem+json", "it is {kind:?}: {}", answer.text);
        ensure!(problem["status"] == status && problem["type"].is_string(), "{problem}");
        ensure!(problem["field"].as_str() == field, "it is not about {field:?}: {problem}");
        Ok(answer)
    }
}

impl Client {
    pub(crate) fn new(base: Url) -> Client {
        Client { http: client_that_stays(LIMIT), base }
    }

    /// Makes a request, with headers, and with a body of a type if there is one.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<(&str, String)>,
    ) -> Result<Answer> {
        let mut request = self.http.request(method, self.base.join(path)?);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some((kind, text)) = body {
            request = request.header("content-type", kind).body(text);
        }
        let answer = request.send().await.with_context(|| format!("no answer from {path}"))?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Ok(Answer { status, headers, text: answer.text().await? })
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Answer> {
        self.ask(Method::GET, path, &[], None).await
    }

    /// Asks for a location under an ID.
    pub(crate) async fn create(&self, id: &str, input: &Value) -> Result<Answer> {
        self.ask(Method::PUT, &format!("/flows/location/{id}"), &[], Some((JSON, input.to_string()))).await
    }

    /// Waits for the end of a command, and says how that was.
    pub(crate) async fn end_of(&self, id: &str) -> Result<Value> {
        let path = format!("/flows/location/{id}");
        loop {
            let status = self.ask(Method::GET, &path, &[("prefer", "wait=30")], None).await?.with(200)?.json();
            match status["status"].as_str() {
                Some("succeeded" | "failed" | "cancelled") => return Ok(status),
                Some("running") => {}
                _ => bail!("it is not on its way to an end: {status}"),
            }
        }
    }

    /// Listens to events, to those after a number if one is given.
    pub(crate) async fn listen(&self, path: &str, after: Option<u64>) -> Result<Events> {
        let mut request = self.http.get(self.base.join(path)?).timeout(STREAM);
        if let Some(after) = after {
            request = request.header("last-event-id", after.to_string());
        }
        let response = request.send().await?;
        ensure!(response.status() == 200, "there is no stream: {}", response.status());
        Ok(Events { response, text: String::new() })
    }
}

/// An event of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) id: Option<u64>,
    pub(crate) name: String,
    pub(crate) data: Value,
}

#[derive(Debug)]
pub(crate) struct Events {
    response: reqwest::Response,
    /// The text that has come, and is not a whole event yet.
    text: String,
}

impl Events {
    /// The next event; `None` at the end of the stream, however that comes.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event_of(block), rest.to_owned());
                self.text = rest;
                if event.is_some() {
                    return event;
                }
            }
            let chunk = self.response.chunk().await.ok().flatten()?;
            self.text += &String::from_utf8_lossy(&chunk);
        }
    }

    /// All events up to the first of this name.
    pub(crate) async fn until(&mut self, name: &str) -> Result<Vec<Event>> {
        let mut seen = Vec::new();
        loop {
            let event = self.next().await.with_context(|| format!("no {name} after {seen:?}"))?;
            let is_it = event.name == name;
            seen.push(event);
            if is_it {
                return Ok(seen);
            }
        }
    }
}

/// `None` of a comment, and of the time after which to come back.
fn event_of(block: &str) -> Option<Event> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
    let name = field("event: ")?.to_owned();
    let data = serde_json::from_str(field("data: ")?).unwrap_or_default();
    Some(Event { id: field("id: ").and_then(|id| id.parse().ok()), name, data })
}
