//! Signatures of webhooks: who called, checked on the raw bytes before anything is stored.
//!
//! All three schemes are an HMAC-SHA256 over the body, two of them with a time in it. A signature is compared in constant time and
//! as the text it is, so that there is one way to write a valid one.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Deserialize;
use sha2::Sha256;
use stable_interfaces::Timestamp;
use subtle::ConstantTimeEq as _;

use crate::flows::Call;
use crate::hash::hex;
use crate::token::KeyError;

/// The difference between a call's own time and this host's at which it is refused, unless it is said otherwise.
const TOLERANCE: Duration = Duration::from_secs(5 * 60);
/// The most signatures of one header that are looked at: a sender that rotates its secrets has two.
const MAX_SIGNATURES: usize = 8;

/// A check that a call comes from whom it should: `Ok` with the sender's own ID of the call, if it has one.
type Check = dyn Fn(&Call, Timestamp) -> Result<Option<String>, Unverified> + Send + Sync;

/// A scheme by which a partner signs its webhooks, with the secrets shared with it.
///
/// Several secrets count at once, so that one can be changed: give the new and the old one until the partner uses the new one.
///
/// ```
/// use callback_flows::Verify;
///
/// let stripe = Verify::stripe(["whsec_new", "whsec_old"])?;
/// # Ok::<(), callback_flows::KeyError>(())
/// ```
#[derive(Clone)]
pub struct Verify {
    scheme: Scheme,
    secrets: Vec<Hmac<Sha256>>,
    tolerance: Duration,
}

#[derive(Clone)]
enum Scheme {
    StandardWebhooks,
    Stripe,
    GitHub,
    Custom(Arc<Check>),
}

/// The reason why a call is not taken for one of its partner.
///
/// Says nothing of the secrets or of the signature that would have been right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unverified {
    /// A header that the scheme needs is missing, or there twice.
    #[error("the header `{0}` is needed once")]
    Header(&'static str),
    /// A header is not written as the scheme says.
    #[error("the header `{0}` is not as its scheme says")]
    Malformed(&'static str),
    /// The call was signed too long ago, or in the future: a copy of an old one, or a wrong clock.
    #[error("signed at a time too far from this host's: check the clocks, or sign again")]
    Stale,
    /// No signature is by one of the secrets.
    #[error("no signature is by a known secret over these bytes")]
    Signature,
    /// A check of the application refused the call, for this reason.
    #[error("{0}")]
    Refused(String),
}

impl Verify {
    /// The scheme of [Standard Webhooks](https://www.standardwebhooks.com): headers `webhook-id`, `webhook-timestamp`,
    /// `webhook-signature`. A secret is base64, mostly with `whsec_` before it. The ID of a call is its `webhook-id`.
    ///
    /// # Errors
    /// [`KeyError`] says which secret cannot be one, by its position from zero.
    pub fn standard_webhooks(secrets: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Verify, KeyError> {
        let decoded = |(at, secret): (usize, _)| {
            let text: &str = AsRef::<str>::as_ref(&secret);
            STANDARD.decode(text.strip_prefix("whsec_").unwrap_or(text)).map_err(|_| KeyError::Encoding(at))
        };
        let secrets = secrets.into_iter().enumerate().map(decoded).collect::<Result<Vec<_>, _>>()?;
        Verify::of(Scheme::StandardWebhooks, &secrets)
    }

    /// The scheme of Stripe: header `Stripe-Signature`, secrets as Stripe shows them. The ID of a call is that of its event.
    ///
    /// # Errors
    /// As [`standard_webhooks`](Self::standard_webhooks).
    pub fn stripe(secrets: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<Verify, KeyError> {
        Verify::of(Scheme::Stripe, &secrets.into_iter().collect::<Vec<_>>())
    }

    /// The scheme of GitHub: header `X-Hub-Signature-256`. The ID of a call is its `X-GitHub-Delivery`.
    ///
    /// Caveat: the scheme signs neither a time nor the ID, so whoever has seen a call can send it again under another ID.
    ///
    /// # Errors
    /// As [`standard_webhooks`](Self::standard_webhooks).
    pub fn github(secrets: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<Verify, KeyError> {
        Verify::of(Scheme::GitHub, &secrets.into_iter().collect::<Vec<_>>())
    }

    /// A check of the application's own: `Ok` with the sender's ID for the call, if it has one, or the reason why the call is refused.
    ///
    /// `check` gets the call as it came and this host's time. Called for each call, before anything is stored; a comparison with a
    /// secret should take the same time whatever it is compared with.
    #[must_use]
    pub fn custom(
        check: impl Fn(&Call, Timestamp) -> Result<Option<String>, Unverified> + Send + Sync + 'static,
    ) -> Verify {
        Verify { scheme: Scheme::Custom(Arc::new(check)), secrets: Vec::new(), tolerance: TOLERANCE }
    }

    /// Sets the greatest difference between the time a call was signed and this host's. Default: 5 min. Nothing to a scheme without
    /// a time.
    #[must_use]
    pub fn tolerance(mut self, tolerance: Duration) -> Verify {
        self.tolerance = tolerance;
        self
    }

    fn of(scheme: Scheme, secrets: &[impl AsRef<[u8]>]) -> Result<Verify, KeyError> {
        if secrets.is_empty() {
            return Err(KeyError::None);
        }
        if let Some(at) = secrets.iter().position(|secret| secret.as_ref().is_empty()) {
            return Err(KeyError::Empty(at));
        }
        let key = |secret: &_| {
            let secret: &[u8] = AsRef::<[u8]>::as_ref(secret);
            Hmac::new_from_slice(secret).expect("HMAC takes a key of any length")
        };
        Ok(Verify { scheme, secrets: secrets.iter().map(key).collect(), tolerance: TOLERANCE })
    }

    /// Checks a call at this host's time `now`: `Ok` with the sender's ID for it, if it has one.
    ///
    /// # Errors
    /// [`Unverified`] says what is wrong: answer with status 401 and take nothing of it.
    pub fn check(&self, call: &Call, now: Timestamp) -> Result<Option<String>, Unverified> {
        match &self.scheme {
            Scheme::StandardWebhooks => {
                let id = once(call, "webhook-id")?;
                let time = once(call, "webhook-timestamp")?;
                let signatures =
                    once(call, "webhook-signature")?.split(' ').filter_map(|part| part.strip_prefix("v1,"));
                let over = [id.as_bytes(), b".", time.as_bytes(), b".", call.body()];
                self.signed(over, signatures, |code| STANDARD.encode(code))?;
                self.fresh(time, "webhook-timestamp", now)?;
                Ok(Some(id.to_owned()))
            }
            Scheme::Stripe => {
                let header = once(call, "stripe-signature")?;
                let values =
                    |of: &'static str| header.split(',').filter_map(move |part| part.trim_start().strip_prefix(of));
                let mut times = values("t=");
                let (Some(time), None) = (times.next(), times.next()) else {
                    return Err(Unverified::Malformed("stripe-signature"));
                };
                self.signed([time.as_bytes(), b".", call.body()], values("v1="), hex)?;
                self.fresh(time, "stripe-signature", now)?;
                Ok(serde_json::from_slice(call.body()).ok().map(|event: Event| event.id))
            }
            Scheme::GitHub => {
                let signature = once(call, "x-hub-signature-256")?
                    .strip_prefix("sha256=")
                    .ok_or(Unverified::Malformed("x-hub-signature-256"))?;
                self.signed([call.body()], [signature], hex)?;
                Ok(call.header_value("x-github-delivery").map(str::to_owned))
            }
            Scheme::Custom(check) => check(call, now),
        }
    }

    /// Checks that one of the signatures is by one of the secrets over these bytes.
    fn signed<'a>(
        &self,
        over: impl IntoIterator<Item = &'a [u8]> + Clone,
        signatures: impl IntoIterator<Item = &'a str>,
        written: impl Fn(&[u8]) -> String,
    ) -> Result<(), Unverified> {
        let code = |secret: &Hmac<Sha256>| {
            let mut code = secret.clone();
            over.clone().into_iter().for_each(|bytes| code.update(bytes));
            written(&code.finalize().into_bytes())
        };
        let codes: Vec<String> = self.secrets.iter().map(code).collect();
        let is_one = |signature: &str| codes.iter().any(|code| bool::from(code.as_bytes().ct_eq(signature.as_bytes())));
        signatures.into_iter().take(MAX_SIGNATURES).any(is_one).then_some(()).ok_or(Unverified::Signature)
    }

    /// Checks that a signed time, in seconds since 1970, is about now.
    fn fresh(&self, time: &str, header: &'static str, now: Timestamp) -> Result<(), Unverified> {
        let seconds: i64 = time.parse().map_err(|_| Unverified::Malformed(header))?;
        let apart = (i128::from(seconds) * 1_000 - i128::from(now.as_millis())).unsigned_abs();
        (apart <= self.tolerance.as_millis()).then_some(()).ok_or(Unverified::Stale)
    }
}

impl fmt::Debug for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::StandardWebhooks => "standard webhooks",
            Scheme::Stripe => "Stripe",
            Scheme::GitHub => "GitHub",
            Scheme::Custom(_) => "custom",
        };
        f.debug_struct("Verify").field("scheme", &scheme).field("tolerance", &self.tolerance).finish_non_exhaustive()
    }
}

/// The part of a Stripe event that matters here.
#[derive(Deserialize)]
struct Event {
    id: String,
}

/// The only value of a header.
fn once<'a>(call: &'a Call, name: &'static str) -> Result<&'a str, Unverified> {
    let mut values = call.header_values(name);
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(value),
        _ => Err(Unverified::Header(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: i64 = 1_614_265_330;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    /// The example of the scheme's own documentation.
    fn standard() -> (Verify, Call) {
        let call = Call::new(&b"{\"test\": 2432232314}"[..])
            .header("Webhook-Id", "msg_p5jXN8AQM9LWM0D4loKWxJek")
            .header("Webhook-Timestamp", "1614265330")
            .header("Webhook-Signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        (Verify::standard_webhooks(["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]).unwrap(), call)
    }

    /// An event that libraries for Stripe in several languages test with.
    fn stripe() -> (Verify, Call) {
        let body = r#"{
  "id": "evt_123",
  "object": "event",
  "account": "acct_123",
  "api_version": "2017-05-25",
  "created": 1533204620,
  "data": {
    "object": {
      "id": "ii_123",
      "object": "invoiceitem",
      "amount": 1000,
      "currency": "usd",
      "customer": "cus_123",
      "date": 1533204620,
      "description": "Test Invoice Item",
      "discountable": false,
      "invoice": "in_123",
      "livemode": false,
      "metadata": {},
      "period": {
        "start": 1533204620,
        "end": 1533204620
      },
      "proration": false,
      "quantity": 3
    }
  },
  "livemode": false,
  "pending_webhooks": 1,
  "request": {
    "id": "req_123",
    "idempotency_key": "idempotency-key-123"
  },
  "type": "invoiceitem.created"
}
"#;
        let signature =
            "t=1533204620,v1=82216eca827bcb7b34b8055eb2d2d9e6bc13b9ac39ded14a61e69f70c565f53a,v0=63f3a72374a733066c4b";
        (Verify::stripe(["webhook_secret"]).unwrap(), Call::new(body.as_bytes()).header("Stripe-Signature", signature))
    }

    /// The example of GitHub's documentation.
    fn github() -> (Verify, Call) {
        let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let call = Call::new(&b"Hello, World!"[..])
            .header("X-Hub-Signature-256", signature)
            .header("X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958");
        (Verify::github(["It's a Secret to Everybody"]).unwrap(), call)
    }

    /// `call` with the value of one header replaced.
    fn with(call: &Call, header: &str, value: &str) -> Call {
        let mut changed = Call::new(call.body().to_vec());
        for (name, old) in call.headers() {
            changed = changed.header(name, if name.eq_ignore_ascii_case(header) { value } else { old });
        }
        changed
    }

    fn with_body(call: &Call, body: Vec<u8>) -> Call {
        call.headers().fold(Call::new(body), |call, (name, value)| call.header(name, value))
    }

    #[test]
    fn the_public_examples_are_genuine_and_name_their_call() {
        let (verify, call) = standard();
        assert_eq!(verify.check(&call, at(AT)), Ok(Some("msg_p5jXN8AQM9LWM0D4loKWxJek".into())));
        let (verify, call) = stripe();
        assert_eq!(verify.check(&call, at(1_533_204_620)), Ok(Some("evt_123".into())));
        let (verify, call) = github();
        assert_eq!(verify.check(&call, at(0)), Ok(Some("72d3162e-cc78-11e3-81ab-4c9367dc0958".into())));
    }

    #[test]
    fn each_changed_byte_of_body_time_or_signature_is_refused() {
        for (verify, call, now, header, signed) in [
            (standard().0, standard().1, AT, "webhook-signature", 0..usize::MAX),
            (standard().0, standard().1, AT, "webhook-timestamp", 0..usize::MAX),
            (standard().0, standard().1, AT, "webhook-id", 0..usize::MAX),
            // Behind the comma is a signature of an older kind, which says nothing.
            (stripe().0, stripe().1, 1_533_204_620, "stripe-signature", 0..80),
            (github().0, github().1, 0, "x-hub-signature-256", 0..usize::MAX),
        ] {
            let value = call.header_value(header).unwrap().to_owned();
            for place in (0..value.len()).filter(|place| signed.contains(place)) {
                for other in "09afAFzZ+/=,. tv".chars().filter(|other| value[place..=place] != *other.to_string()) {
                    let changed = format!("{}{other}{}", &value[..place], &value[place + 1..]);
                    let answer = verify.check(&with(&call, header, &changed), at(now));
                    assert!(answer.is_err(), "{header}: {changed} gave {answer:?}");
                }
                let shorter = format!("{}{}", &value[..place], &value[place + 1..]);
                assert!(verify.check(&with(&call, header, &shorter), at(now)).is_err(), "{header}: {shorter}");
            }
            for place in 0..call.body().len() {
                let mut body = call.body().to_vec();
                body[place] ^= 1;
                let answer = verify.check(&with_body(&call, body), at(now));
                assert_eq!(answer, Err(Unverified::Signature), "byte {place} of the body");
            }
        }
    }

    #[test]
    fn a_call_that_was_signed_long_ago_or_in_the_future_is_stale() {
        for apart in [-300, 300] {
            assert!(standard().0.check(&standard().1, at(AT + apart)).is_ok());
        }
        for apart in [-301, 301, i64::MAX / 2_000, -AT] {
            assert_eq!(standard().0.check(&standard().1, at(AT + apart)), Err(Unverified::Stale));
            assert_eq!(stripe().0.check(&stripe().1, at(1_533_204_620 + apart)), Err(Unverified::Stale));
        }
        let patient = standard().0.tolerance(Duration::MAX);
        assert!(patient.check(&standard().1, at(0)).is_ok());
    }

    #[test]
    fn a_signature_by_any_of_several_secrets_counts_and_by_none_is_refused() {
        let (_, call) = stripe();
        let now = at(1_533_204_620);
        assert!(Verify::stripe(["the new one", "webhook_secret"]).unwrap().check(&call, now).is_ok());
        assert_eq!(Verify::stripe(["the new one"]).unwrap().check(&call, now), Err(Unverified::Signature));
        let two =
            "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE= v1a,x";
        let (verify, call) = standard();
        assert!(verify.check(&with(&call, "webhook-signature", two), at(AT)).is_ok());
    }

    #[test]
    fn a_header_that_is_missing_or_there_twice_is_named() {
        let (verify, call) = github();
        let bare = Call::new(call.body().to_vec());
        assert_eq!(verify.check(&bare, at(0)), Err(Unverified::Header("x-hub-signature-256")));
        let twice = call.clone().header("x-hub-signature-256", "sha256=00");
        assert_eq!(verify.check(&twice, at(0)), Err(Unverified::Header("x-hub-signature-256")));
        assert_eq!(
            verify.check(&with(&call, "x-hub-signature-256", "sha1=00"), at(0)),
            Err(Unverified::Malformed("x-hub-signature-256"))
        );
        let (verify, call) = stripe();
        for odd in ["", "v1=00", "t=1,t=2,v1=00"] {
            let answer = verify.check(&with(&call, "stripe-signature", odd), at(0));
            assert_eq!(answer, Err(Unverified::Malformed("stripe-signature")), "{odd}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_signed_like_others() {
        let body = [0xff, 0xfe, 0x00, 0x80];
        let mut code = Hmac::<Sha256>::new_from_slice(b"secret").unwrap();
        code.update(&body);
        let signature = format!("sha256={}", hex(&code.finalize().into_bytes()));
        let call = Call::new(body.to_vec()).header("x-hub-signature-256", &signature);
        assert_eq!(Verify::github(["secret"]).unwrap().check(&call, at(0)), Ok(None));
    }

    #[test]
    fn secrets_that_cannot_be_are_refused_by_position_and_never_shown() {
        assert_eq!(Verify::stripe(Vec::<String>::new()).unwrap_err(), KeyError::None);
        assert_eq!(Verify::github(["a", ""]).unwrap_err(), KeyError::Empty(1));
        assert_eq!(Verify::standard_webhooks(["whsec_"]).unwrap_err(), KeyError::Empty(0));
        assert_eq!(Verify::standard_webhooks(["whsec_AAAA", "no base64!"]).unwrap_err(), KeyError::Encoding(1));
        let shown = format!("{:?}", Verify::stripe(["a secret"]).unwrap());
        assert_eq!(shown, "Verify { scheme: \"Stripe\", tolerance: 300s, .. }");
        for unverified in [Unverified::Signature, Unverified::Stale] {
            assert!(!format!("{unverified} {unverified:?}").contains("82216eca"));
        }
    }

    #[test]
    fn a_check_of_the_application_has_the_last_word() {
        let verify = Verify::custom(|call, _| match call.header_value("x-token") {
            Some("let me in") => Ok(Some("1".into())),
            _ => Err(Unverified::Refused("the door is closed".into())),
        });
        assert_eq!(verify.check(&Call::new("").header("X-Token", "let me in"), at(0)), Ok(Some("1".into())));
        assert_eq!(verify.check(&Call::new(""), at(0)).unwrap_err().to_string(), "the door is closed");
    }
}
