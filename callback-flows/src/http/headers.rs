//! Headers that mean something here: what a client prefers, has seen, and calls its request.

use std::time::Duration;

use axum::http::{HeaderMap, header};

use super::LONGEST_WAIT;

/// The longest key of a request, in bytes.
const MAX_KEY_BYTES: usize = 255;

/// The reason why a header cannot be used, for its sender.
pub(super) type Unusable = &'static str;

/// The time that a client would rather wait than be answered at once: `Prefer: wait=10` (RFC 7240). The first that is said counts, 30 s at
/// most; what cannot be understood is no preference.
pub(super) fn wait(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let mut waits = values.flat_map(|value| value.split(',')).filter_map(|preference| {
        // Parameters of a preference come after a semicolon.
        let (name, seconds) = preference.split(';').next()?.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then(|| seconds.trim().trim_matches('"').to_owned())
    });
    let seconds = waits.next()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_WAIT)).filter(|wait| !wait.is_zero())
}

/// The number of the last event that a client has had: `Last-Event-ID`; 0 without one.
pub(super) fn last_event(headers: &HeaderMap) -> Result<u64, Unusable> {
    match headers.get("last-event-id").map(|value| value.to_str().unwrap_or("?")) {
        None | Some("") => Ok(0),
        Some(number) => number.trim().parse().map_err(|_| "Last-Event-ID is the number of an event, or left out."),
    }
}

/// The client's own name for its request: `Idempotency-Key`, as a string of structured headers (RFC 9651) or bare.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<String>, Unusable> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err("There may be one Idempotency-Key.");
    }
    let text = value.to_str().map_err(|_| "An Idempotency-Key has visible ASCII characters alone.")?.trim();
    let key = match text.strip_prefix('"') {
        Some(rest) => unquoted(rest).ok_or("The quotes of this Idempotency-Key do not end where it does.")?,
        None => text.to_owned(),
    };
    match key.len() {
        1..=MAX_KEY_BYTES => Ok(Some(key)),
        _ => Err("An Idempotency-Key has 1 to 255 characters."),
    }
}

/// The text up to the quote that ends it, which must be the last character.
fn unquoted(rest: &str) -> Option<String> {
    let (mut text, mut characters) = (String::new(), rest.chars());
    loop {
        match characters.next()? {
            '"' => return characters.next().is_none().then_some(text),
            '\\' => match characters.next()? {
                escaped @ ('"' | '\\') => text.push(escaped),
                _ => return None,
            },
            other => text.push(other),
        }
    }
}

/// Tells whether a client has this version already: `If-None-Match`; `None` if it has not said which it has.
pub(super) fn has_version(headers: &HeaderMap, tag: &str) -> Option<bool> {
    let mut said = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).peekable();
    said.peek()?;
    let is_this = |known: &str| known.trim() == "*" || known.trim().trim_start_matches("W/") == tag;
    Some(said.flat_map(|value| value.split(',')).any(is_this))
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn with(name: &'static str, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_wait_is_the_first_that_is_said_and_thirty_seconds_at_most() {
        let waits = |values: &[&str]| wait(&with("prefer", values)).map(|wait| wait.as_secs());
        assert_eq!(waits(&[]), None);
        assert_eq!(waits(&["wait=10"]), Some(10));
        assert_eq!(waits(&["respond-async, WAIT = 7; foo=bar"]), Some(7));
        assert_eq!(waits(&["respond-async", "wait=3", "wait=9"]), Some(3));
        assert_eq!(waits(&["wait=\"5\""]), Some(5));
        assert_eq!(waits(&["wait=31"]), Some(30));
        assert_eq!(waits(&["wait=18446744073709551615"]), Some(30));
        for none in
            ["wait=-1", "wait=0", "wait", "wait=", "wait=1.5", "wait=99999999999999999999", "waits=3", "=", ";;,,"]
        {
            assert_eq!(waits(&[none]), None, "{none}");
        }
    }

    #[test]
    fn a_key_is_taken_bare_or_quoted_and_what_is_neither_is_refused() {
        let keys = |values: &[&str]| key(&with("idempotency-key", values));
        assert_eq!(keys(&[]), Ok(None));
        for (said, is) in [("17", "17"), ("\"17\"", "17"), (r#""a\"b\\c""#, r#"a"b\c"#), (" a b ", "a b")] {
            assert_eq!(keys(&[said]), Ok(Some(is.to_owned())), "{said}");
        }
        for none in ["", "\"\"", "\"a", "\"a\"b", r#""a\b""#, r#""a\"#, &"x".repeat(256)] {
            assert!(keys(&[none]).is_err(), "{none}");
        }
        assert!(keys(&["a", "a"]).is_err());
        assert!(keys(&[&"x".repeat(255)]).is_ok());
    }

    #[test]
    fn the_number_of_the_last_event_is_a_number_or_left_out() {
        let last = |values: &[&str]| last_event(&with("last-event-id", values));
        assert_eq!((last(&[]), last(&[""]), last(&["17"])), (Ok(0), Ok(0), Ok(17)));
        assert_eq!(last(&["18446744073709551615"]), Ok(u64::MAX));
        assert!(["x", "-1", "1.5", "18446744073709551616"].iter().all(|none| last(&[none]).is_err()));
    }

    #[test]
    fn a_version_is_known_by_any_of_the_tags_that_are_said() {
        let has = |values: &[&str]| has_version(&with("if-none-match", values), "\"b\"");
        assert_eq!(has(&[]), None);
        assert_eq!(has(&["\"a\""]), Some(false));
        assert_eq!(has(&["\"a\", \"b\""]), Some(true));
        assert_eq!(has(&["\"a\"", "W/\"b\""]), Some(true));
        assert_eq!(has(&["*"]), Some(true));
    }
}
