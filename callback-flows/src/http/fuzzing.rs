//! Fuzz targets of the request headers: one value a line.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::headers::{self, IDEMPOTENCY_KEY, LAST_EVENT_ID, LONGEST_WAIT, PREFER};

fn of(name: &HeaderName, data: &[u8]) -> HeaderMap {
    let values = data.split(|byte| *byte == b'\n').filter_map(|value| HeaderValue::from_bytes(value).ok());
    let mut headers = HeaderMap::new();
    for value in values.take(8) {
        headers.append(name, value);
    }
    headers
}

/// `Prefer`: a wait is never longer than the longest, and without quotes it is the first of its name between commas.
pub fn prefer(data: &[u8]) -> bool {
    let headers = of(&PREFER, data);
    let wait = headers::wait(&headers);
    assert!(wait.is_none_or(|wait| wait <= LONGEST_WAIT), "{wait:?}");
    let values: Vec<&str> = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok()).collect();
    if !values.iter().any(|value| value.contains(['"', '\\'])) {
        let preferences = values.iter().flat_map(|value| value.split(','));
        let words = preferences.map(|preference| preference.split(';').next().unwrap_or_default());
        let mut pairs = words
            .map(|word| word.split_once('=').map_or((word.trim(), ""), |(name, value)| (name.trim(), value.trim())));
        let first = pairs.find(|(name, _)| name.eq_ignore_ascii_case("wait")).map(|(_, seconds)| seconds);
        let is_number = |text: &&str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        let seconds = first.filter(is_number).map(|text| text.trim_start_matches('0').parse().unwrap_or(u64::MAX));
        let zero = first.is_some_and(|text| is_number(&text) && text.bytes().all(|byte| byte == b'0'));
        let expected = if zero { Some(0) } else { seconds };
        assert_eq!(wait, expected.map(|seconds| Duration::from_secs(seconds).min(LONGEST_WAIT)), "{values:?}");
    }
    wait.is_some()
}

/// `Last-Event-ID`: a number, which is read again as it is written.
#[must_use]
pub fn last_event_id(data: &[u8]) -> bool {
    let Ok(number) = headers::last_event_id(&of(&LAST_EVENT_ID, data)) else { return false };
    assert_eq!(headers::last_event_id(&of(&LAST_EVENT_ID, number.to_string().as_bytes())), Ok(number));
    true
}

/// `Idempotency-Key`: of bounded length, of ASCII, and read again as it is written between quotes.
#[must_use]
pub fn idempotency_key(data: &[u8]) -> bool {
    let Ok(Some(key)) = headers::idempotency_key(&of(&IDEMPOTENCY_KEY, data)) else { return false };
    assert!((1..=255).contains(&key.len()) && key.is_ascii() && !key.contains(['\0', '\n', '\r']), "{key:?}");
    let written = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
    assert_eq!(headers::idempotency_key(&of(&IDEMPOTENCY_KEY, written.as_bytes())), Ok(Some(key)));
    true
}
