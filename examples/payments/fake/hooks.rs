//! The fake's webhooks: events that are signed as Stripe signs them, and sent again until they are acknowledged.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::time::{Instant, sleep};

use crate::fake::{Stripe, now};
use crate::plan::Hook;

/// The path of the service that takes events, below its address.
pub(crate) const PATH: &str = "stripe/events";
/// The secret of somebody who would like to be Stripe.
const ANOTHER_SECRET: &str = "whsec_guessed";
/// The time after which an event is not sent any more.
const GIVEN_UP: Duration = Duration::from_secs(40);
/// The time for which an answer waits for the event that is sent before it.
const EARLY: Duration = Duration::from_millis(300);

/// The value of `Stripe-Signature` for a body that is sent at a time, in seconds since 1970.
pub(crate) fn signature(secret: &str, seconds: u64, body: &str) -> String {
    let mut code = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    code.update(format!("{seconds}.{body}").as_bytes());
    let code: String = code.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={seconds},v1={code}")
}

impl Stripe {
    /// Sends the news of a payment that has succeeded, in the way that is planned for its order.
    pub(crate) async fn announce(&self, intent: &Value) {
        let order = intent["metadata"]["order"].as_str().unwrap_or_default().to_owned();
        let Some(hook) = self.books().dealings.get(&order).map(|dealing| dealing.hook) else { return };
        let id = format!("evt_{}", intent["id"].as_str().unwrap_or_default());
        let event =
            json!({"id": id, "object": "event", "type": "payment_intent.succeeded", "data": {"object": intent}});
        let send = |times: u32, secret: String, after: Duration| {
            let (stripe, order, event) = (self.clone(), order.clone(), event.to_string());
            tokio::spawn(async move {
                for _ in 0..times {
                    sleep(after).await;
                    stripe.send(&order, &event, &secret).await;
                }
            })
        };
        let soon = Duration::from_millis(fastrand::u64(20..250));
        match hook {
            Hook::Once => drop(send(1, self.secret.clone(), soon)),
            Hook::Twice => drop(send(2, self.secret.clone(), soon)),
            Hook::Early => {
                // Unless the host dies meanwhile, the answer to the request comes after it.
                let _ = tokio::time::timeout(EARLY, send(1, self.secret.clone(), Duration::ZERO)).await;
            }
            Hook::Forged => drop(send(1, ANOTHER_SECRET.to_owned(), soon)),
            Hook::Never => {}
        }
    }

    /// Sends an event until it is acknowledged, refused for good, or old.
    async fn send(&self, order: &str, event: &str, secret: &str) {
        let until = Instant::now() + GIVEN_UP;
        while Instant::now() < until {
            let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let request = self.http.post(format!("{}{PATH}", self.doors.any().url)).body(event.to_owned());
            let request = request.header("content-type", "application/json");
            let answer = request.header("stripe-signature", signature(secret, seconds, event)).send().await;
            match answer.map(|answer| answer.status()) {
                Ok(status) if status.is_success() => {
                    if let Some(dealing) = self.books().dealings.get_mut(order) {
                        dealing.was_fooled |= secret != self.secret;
                        dealing.acknowledged.get_or_insert_with(now);
                    }
                    return;
                }
                Ok(StatusCode::UNAUTHORIZED | StatusCode::GONE) => return,
                _ => sleep(Duration::from_millis(fastrand::u64(50..200))).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use callback_flows::{Call, Verify};
    use stable_interfaces::Timestamp;

    use super::*;

    #[test]
    fn what_the_fake_signs_is_stripes_to_whoever_has_the_secret() {
        let body = r#"{"id":"evt_1"}"#;
        let signed = |secret| Call::new(body).header("Stripe-Signature", &signature(secret, 1_600_000_000, body));
        let verify = Verify::stripe(["whsec_1"]).expect("a secret");
        let at = Timestamp::from_millis(1_600_000_001_000);
        assert_eq!(verify.check(&signed("whsec_1"), at), Ok(Some("evt_1".to_owned())));
        assert!(verify.check(&signed(ANOTHER_SECRET), at).is_err());
    }
}
