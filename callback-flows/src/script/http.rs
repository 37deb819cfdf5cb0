//! `http.get`, `http.post` and the like: requests with JSON bodies, sent by a client that the application brings.
//!
//! The crate has no client of its own: an application that calls partners has one, with its own settings for TLS, proxies and
//! pools, and a second one would be half of this crate's dependencies. What must be the same for every client is here: keys, limits,
//! which errors are tried again, and what a script sees of a response.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::calls::{Call, CallCx, CallError};

/// The most bytes of a response's body that a script is given.
const MAX_BODY_BYTES: usize = 192 * 1024;
/// The longest wait that a partner is believed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * 3_600);
/// All that is not itself in a form or a query.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// The methods that scripts have.
pub(super) const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// A request of a script, for the client of the application to send as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpRequest {
    /// `GET`, `POST`, `PUT`, `PATCH` or `DELETE`.
    pub method: String,
    /// The URL, with its query.
    pub url: String,
    /// The headers, `idempotency-key` and, with a body, `content-type` among them.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

impl HttpRequest {
    /// The most bytes of the response's body that are of use: a client need read no more than one byte beyond them.
    #[must_use]
    pub fn max_body_bytes(&self) -> usize {
        MAX_BODY_BYTES
    }
}

/// A response, as the client of the application has received it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpResponse {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

/// A request as a script asks for it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Asked {
    pub(super) url: String,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(super) headers: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(super) query: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) body: Option<Value>,
    /// The body is a form, in the place of JSON.
    #[serde(default)]
    pub(super) form: bool,
}

/// The calls that scripts make by this client.
pub(super) fn calls<F, Fut>(client: F) -> impl Iterator<Item = Call>
where
    F: Fn(HttpRequest) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<HttpResponse, CallError>> + Send + 'static,
{
    METHODS.into_iter().map(move |method| {
        let client = client.clone();
        Call::new(&format!("http.{method}"), move |cx, asked| {
            let request = request(method, &cx, asked);
            let response = request.map(&client);
            async move { answer(response?.await?) }
        })
    })
}

fn request(method: &str, cx: &CallCx, asked: Value) -> Result<HttpRequest, CallError> {
    let invalid = |reason: String| CallError::new("invalid_request", reason);
    let asked: Asked = serde_json::from_value(asked).map_err(|error| invalid(error.to_string()))?;
    let mut url = asked.url;
    if !asked.query.is_empty() {
        url.push(if url.contains('?') { '&' } else { '?' });
        url.push_str(&form(&Value::Object(asked.query)));
    }
    let mut headers = vec![("idempotency-key".to_owned(), cx.idempotency_key())];
    let body = match &asked.body {
        None => Bytes::new(),
        Some(body) => {
            let (kind, bytes) = match body {
                body if asked.form => ("application/x-www-form-urlencoded", form(body)),
                Value::String(text) => ("text/plain; charset=utf-8", text.clone()),
                body => ("application/json", body.to_string()),
            };
            if !asked.headers.keys().any(|name| name.eq_ignore_ascii_case("content-type")) {
                headers.push(("content-type".to_owned(), kind.to_owned()));
            }
            bytes.into()
        }
    };
    for (name, value) in asked.headers {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let is_name =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        // What is data must not become a header of its own.
        if !is_name || value.chars().any(char::is_control) {
            return Err(invalid(format!("{name:?} cannot be a header with the value {value:?}")));
        }
        if !name.eq_ignore_ascii_case("idempotency-key") {
            headers.push((name.to_ascii_lowercase(), value));
        }
    }
    Ok(HttpRequest { method: method.to_ascii_uppercase(), url, headers, body })
}

/// A response as a script has it, or the error that it is.
fn answer(response: HttpResponse) -> Result<Value, CallError> {
    let HttpResponse { status, headers, body } = response;
    if body.len() > MAX_BODY_BYTES {
        let message = format!("the response has more than {MAX_BODY_BYTES} bytes");
        return Err(CallError::new("too_large", message).status(status));
    }
    if status >= 400 {
        return Err(CallError::from_response(status, &headers, &body));
    }
    let headers =
        headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value.into())).collect::<Map<_, _>>();
    Ok(json!({ "status": status, "headers": headers, "body": body_of(&body) }))
}

/// A body: JSON if it is that, else a text.
pub(super) fn body_of(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned().into())
}

impl CallError {
    /// The error that a response is: its `error.type`, `error.code` and `error.message` where its body is JSON with these, as that of many
    /// APIs is. 409, 425, 429 and from 500 on are [tried again](Self::retry), as soon as a `retry-after` in seconds allows (at most a
    /// day), or when `stripe-should-retry` says so.
    #[must_use]
    pub fn from_response(status: u16, headers: &[(String, String)], body: &[u8]) -> CallError {
        let parsed: Value = serde_json::from_slice(body).unwrap_or_default();
        let error = parsed.get("error").unwrap_or(&parsed);
        let text = |name: &str| error.get(name).and_then(Value::as_str);
        let header = |wanted: &str| {
            headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| &**value)
        };
        let fallback = match status {
            429 => "rate_limit",
            500.. => "server_error",
            _ => "http_error",
        };
        let message = text("message").or_else(|| parsed.get("error").and_then(Value::as_str));
        let message = message.map_or_else(|| format!("the response has the status {status}"), str::to_owned);
        let mut said = CallError::new(text("type").unwrap_or(fallback), message).status(status);
        if let Some(code) = text("code") {
            said = said.code(code);
        }
        let is_transient = match header("stripe-should-retry") {
            Some("true") => true,
            Some("false") => false,
            _ => matches!(status, 409 | 425 | 429 | 500..),
        };
        if is_transient {
            let after = header("retry-after").and_then(|seconds| seconds.trim().parse().ok()).map(Duration::from_secs);
            said = match after {
                Some(after) => said.retry_after(after.min(LONGEST_RETRY_AFTER)),
                None => said.retry(),
            };
        }
        said
    }
}

/// An object as a form: nested names in brackets, `metadata[order]=17`, `items[0][price]=..`.
pub(super) fn form(value: &Value) -> String {
    let mut pairs = Vec::new();
    flatten(&mut pairs, String::new(), value);
    let mut out = String::new();
    for (name, value) in pairs {
        if !out.is_empty() {
            out.push('&');
        }
        out.extend(utf8_percent_encode(&name, ESCAPED));
        out.push('=');
        out.extend(utf8_percent_encode(&value, ESCAPED));
    }
    out
}

fn flatten(pairs: &mut Vec<(String, String)>, name: String, value: &Value) {
    let within = |part: &str| if name.is_empty() { part.to_owned() } else { format!("{name}[{part}]") };
    match value {
        Value::Null => {}
        Value::Object(fields) => fields.iter().for_each(|(part, value)| flatten(pairs, within(part), value)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(n, value)| flatten(pairs, within(&n.to_string()), value));
        }
        Value::String(text) => pairs.push((name, text.clone())),
        other => pairs.push((name, other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_has_nested_names_in_brackets_and_nothing_that_ends_a_pair() {
        let value = json!({"amount": 2000, "metadata": {"a&b": "x=y z\n"}, "items": [{"price": "p"}], "none": null});
        let pairs = form(&value);
        assert_eq!(pairs, "amount=2000&items%5B0%5D%5Bprice%5D=p&metadata%5Ba%26b%5D=x%3Dy%20z%0A");
    }

    #[test]
    fn a_response_says_whether_it_is_worth_another_attempt_and_when() {
        let headers = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        let declined =
            CallError::from_response(402, &[], br#"{"error":{"type":"card_error","code":"declined","message":"no"}}"#);
        assert_eq!(declined, CallError::new("card_error", "no").code("declined").status(402));
        let busy = CallError::from_response(429, &headers("Retry-After", "7"), b"");
        assert_eq!(
            busy,
            CallError::new("rate_limit", "the response has the status 429")
                .status(429)
                .retry_after(Duration::from_secs(7))
        );
        assert!(CallError::from_response(500, &[], b"<html>").is_transient());
        assert!(!CallError::from_response(500, &headers("stripe-should-retry", "false"), b"").is_transient());
        let ages = CallError::from_response(503, &headers("retry-after", "99999999999"), b"");
        assert_eq!(ages.clone().retry_after(LONGEST_RETRY_AFTER), ages);
    }

    #[test]
    fn a_body_over_the_limit_is_an_error() {
        let response = |bytes| HttpResponse { status: 200, body: vec![b'"'; bytes].into(), ..HttpResponse::default() };
        assert_eq!(answer(response(MAX_BODY_BYTES + 1)).unwrap_err().kind(), "too_large");
        assert!(answer(response(MAX_BODY_BYTES)).is_ok());
    }
}
