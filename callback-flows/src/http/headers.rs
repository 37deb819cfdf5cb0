//! The request headers that the routers understand, parsed from any bytes: nothing here panics, allocates more than its input, or is
//! slower than linear.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

/// The longest that a request is held for `Prefer: wait`.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The longest `Idempotency-Key`, in bytes.
const MAX_KEY_BYTES: usize = 255;

pub(super) const PREFER: HeaderName = HeaderName::from_static("prefer");
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
pub(super) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The time that a client asks to wait for (RFC 7240, section 4.3), at most [`LONGEST_WAIT`]; `None` if it does not, or in words that
/// mean nothing: a preference may always be ignored. Of several, the first one counts.
pub(super) fn wait(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(PREFER).into_iter().filter_map(|value| value.to_str().ok());
    let waits = values.flat_map(preferences).find(|(name, _)| name.eq_ignore_ascii_case("wait"));
    let (_, seconds) = waits?;
    let is_number = !seconds.is_empty() && seconds.bytes().all(|byte| byte.is_ascii_digit());
    // What is too large for a number is longer than the longest wait, too.
    is_number.then(|| Duration::from_secs(seconds.parse().unwrap_or(u64::MAX)).min(LONGEST_WAIT))
}

/// Each preference of a header's value: its name, and its value without quotes. Parameters are left out.
fn preferences(header: &str) -> impl Iterator<Item = (&str, &str)> {
    outside_of_quotes(header, ',').filter_map(|preference| {
        let word = outside_of_quotes(preference, ';').next()?;
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let value = value.trim();
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        Some((name.trim(), value))
    })
}

/// Splits a text at a separator that is not within quotes.
fn outside_of_quotes(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |c: char| {
        if is_escaped {
            is_escaped = false;
            return false;
        }
        match c {
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            _ => return c == separator && !is_quoted,
        }
        false
    })
}

/// The key under which a client repeats a request: a string of structured fields (RFC 9651) as the draft of `Idempotency-Key` has it,
/// or the bare text that most clients send. `Ok(None)` if there is none.
///
/// # Errors
/// A text says what is wrong with it.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, &'static str> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).into_iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err("the header Idempotency-Key is there twice");
    }
    let text = value.to_str().map_err(|_| "the Idempotency-Key is not of visible ASCII characters")?.trim();
    let key = match text.strip_prefix('"') {
        Some(quoted) => unquoted(quoted).ok_or("the quotes of the Idempotency-Key do not match")?,
        None => text.to_owned(),
    };
    match key.len() {
        0 => Err("the Idempotency-Key is empty"),
        1..=MAX_KEY_BYTES => Ok(Some(key)),
        _ => Err("the Idempotency-Key has more than 255 characters"),
    }
}

/// The text of a quoted string, from behind its first quote on.
fn unquoted(quoted: &str) -> Option<String> {
    let mut text = String::with_capacity(quoted.len());
    let mut chars = quoted.chars();
    loop {
        match chars.next()? {
            '"' => break,
            '\\' => match chars.next()? {
                escaped @ ('"' | '\\') => text.push(escaped),
                _ => return None,
            },
            other => text.push(other),
        }
    }
    chars.next().is_none().then_some(text)
}

/// The number of the last event that a client has had, 0 if it has had none.
///
/// # Errors
/// If it is no number that an event can have.
pub(super) fn last_event_id(headers: &HeaderMap) -> Result<u64, &'static str> {
    let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(0) };
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match digits {
        // As `EventSource` writes that there was none.
        Some("") => Ok(0),
        // Beyond the end of every stream.
        Some(digits) => Ok(digits.parse().unwrap_or(u64::MAX)),
        None => Err("the Last-Event-ID is no number: send the `id` of the last event of this stream, or none"),
    }
}

/// Tells whether a client has what has this tag already: `If-None-Match` (RFC 9110, section 13.1.2).
pub(super) fn has_already(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    let mut tags = values.flat_map(|value| outside_of_quotes(value, ',')).map(str::trim);
    tags.any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

/// Tells whether a body says that it is JSON, which no form of a foreign page can.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let media = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// A header's value of which it is known that it can be one.
pub(super) fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[(HeaderName, &str)]) -> HeaderMap {
        headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_bytes(value.as_bytes()).unwrap())).collect()
    }

    #[test]
    fn the_first_wait_counts_and_is_thirty_seconds_at_most() {
        for (values, seconds) in [
            (&["wait=5"][..], Some(5)),
            (&["Wait = 5"], Some(5)),
            (&["wait=\"5\""], Some(5)),
            (&["respond-async, wait=5; why=\"a, wait=7\""], Some(5)),
            (&["note=\"x, wait=7\", wait=5"], Some(5)),
            (&["note=\"a \\\" b, wait=7\", wait=5"], Some(5)),
            (&["wait=5", "wait=7"], Some(5)),
            (&["respond-async", "wait=7"], Some(7)),
            (&["wait=0"], Some(0)),
            (&["wait=31"], Some(30)),
            (&["wait=99999999999999999999999"], Some(30)),
            (&["wait=-1"], None),
            (&["wait=+1"], None),
            (&["wait=1.5"], None),
            (&["wait"], None),
            (&["wait="], None),
            (&["await=5"], None),
            (&["note=\"wait=5"], None),
            (&["wait=é"], None),
            (&["", ",,;;,=,"], None),
            (&[], None),
        ] {
            let headers: Vec<_> = values.iter().map(|value| (PREFER, *value)).collect();
            assert_eq!(wait(&of(&headers)), seconds.map(Duration::from_secs), "{values:?}");
        }
    }

    #[test]
    fn a_key_is_a_quoted_string_or_a_bare_text() {
        for (value, key) in [
            ("\"8e03978e\"", Some("8e03978e")),
            ("8e03978e", Some("8e03978e")),
            ("\"a \\\"b\\\" \\\\\"", Some("a \"b\" \\")),
            ("a/b", Some("a/b")),
            ("\"a", None),
            ("\"a\"b", None),
            ("\"a\\b\"", None),
            ("\"\"", None),
            ("", None),
            ("é", None),
        ] {
            assert_eq!(idempotency_key(&of(&[(IDEMPOTENCY_KEY, value)])).ok().flatten().as_deref(), key, "{value}");
        }
        assert_eq!(idempotency_key(&of(&[])), Ok(None));
        let long = "a".repeat(MAX_KEY_BYTES);
        assert_eq!(idempotency_key(&of(&[(IDEMPOTENCY_KEY, &long)])), Ok(Some(long.clone())));
        assert!(idempotency_key(&of(&[(IDEMPOTENCY_KEY, &(long + "a"))])).is_err());
        let mut twice = of(&[(IDEMPOTENCY_KEY, "a")]);
        twice.append(IDEMPOTENCY_KEY, HeaderValue::from_static("a"));
        assert!(idempotency_key(&twice).is_err());
    }

    #[test]
    fn the_last_event_is_a_number_and_one_beyond_all_is_the_largest() {
        for (value, id) in [
            ("0", Some(0)),
            ("17", Some(17)),
            ("007", Some(7)),
            ("", Some(0)),
            ("99999999999999999999", Some(u64::MAX)),
            ("-1", None),
            ("+1", None),
            ("1.0", None),
            ("x", None),
            ("é", None),
        ] {
            assert_eq!(last_event_id(&of(&[(LAST_EVENT_ID, value)])).ok(), id, "{value}");
        }
        assert_eq!(last_event_id(&of(&[])), Ok(0));
    }

    #[test]
    fn a_tag_is_found_in_a_list_weak_or_strong() {
        for (value, is_there) in [
            ("\"a\"", true),
            ("W/\"a\"", true),
            ("\"b\", \"a\"", true),
            ("\"b,\", W/\"a\"", true),
            ("*", true),
            ("\"b\"", false),
            ("a", false),
            ("\"b, \"a\"", false),
            ("", false),
        ] {
            assert_eq!(has_already(&of(&[(header::IF_NONE_MATCH, value)]), "\"a\""), is_there, "{value}");
        }
    }

    #[test]
    fn a_body_is_json_only_where_it_says_so() {
        for (value, json) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/cloudevents+json", true),
            ("text/plain", false),
            ("text/plain+json", false),
            ("application/x-www-form-urlencoded", false),
            ("application/jsonx", false),
            ("", false),
        ] {
            assert_eq!(is_json(&of(&[(header::CONTENT_TYPE, value)])), json, "{value}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}
