//! Rules for the calls of a callback, which hold before any code of the flow runs, on every host.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use stable_interfaces::Timestamp;

use crate::flows::{Call, FlowsError};
use crate::hash::hex;
use crate::verify::Verify;

/// The rules for the calls of one callback of a flow: [`FlowsBuilder::callback_policy`](crate::FlowsBuilder::callback_policy).
///
/// ```
/// use callback_flows::{CallbackPolicy, Verify};
///
/// # #[derive(serde::Deserialize)] struct Accept;
/// let policy = CallbackPolicy::new()
///     .verify(Verify::standard_webhooks(["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])?)
///     .body_is::<Accept>()
///     .keep_header("x-trace-id")
///     .reply(200, "thank you");
/// # let _ = policy;
/// # Ok::<(), callback_flows::KeyError>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "a policy is given to `FlowsBuilder::callback_policy`"]
pub struct CallbackPolicy {
    verify: Option<Verify>,
    kept: Vec<String>,
    id: CallId,
    check: Option<Check>,
    status: u16,
    body: Bytes,
    takes_get: bool,
    takes_put: bool,
}

/// Refuses a body that is not of a type.
type Check = fn(&[u8]) -> Result<(), serde_json::Error>;

/// The place that a call's ID is taken from.
#[derive(Debug, Clone)]
enum CallId {
    /// The word of whoever hands the call over.
    Given,
    Header(String),
    Body,
}

impl Default for CallbackPolicy {
    /// Takes every call, keeps no header, and is answered 202 with nothing.
    fn default() -> CallbackPolicy {
        CallbackPolicy {
            verify: None,
            kept: Vec::new(),
            id: CallId::Given,
            check: None,
            status: 202,
            body: Bytes::new(),
            takes_get: false,
            takes_put: false,
        }
    }
}

impl CallbackPolicy {
    /// Takes every call, keeps no header, and is answered 202 with nothing.
    pub fn new() -> CallbackPolicy {
        CallbackPolicy::default()
    }

    /// Refuses calls that are not signed as they should be: [`FlowsError::Unverified`].
    pub fn verify(mut self, verify: Verify) -> CallbackPolicy {
        self.verify = Some(verify);
        self
    }

    /// Refuses calls whose body is not a `T` as JSON: [`FlowsError::Undecodable`]. Without it, the flow's code is told.
    pub fn body_is<T: DeserializeOwned>(mut self) -> CallbackPolicy {
        self.check = Some(|body| serde_json::from_slice::<T>(body).map(drop));
        self
    }

    /// Keeps a header of each call for the flow's code: [`Received::headers`](crate::Received::headers). Of a callback that has a policy, no other is kept.
    pub fn keep_header(mut self, name: &str) -> CallbackPolicy {
        self.kept.push(name.to_ascii_lowercase());
        self
    }

    /// Takes the [ID](Call::id) of a call from a header: of calls with one ID, the flow takes one. A call without that header counts each
    /// time.
    pub fn id_from_header(mut self, name: &str) -> CallbackPolicy {
        self.id = CallId::Header(name.to_owned());
        self
    }

    /// Takes a hash of its body for the [ID](Call::id) of a call: of calls with the same body, the flow takes one.
    pub fn id_from_body(mut self) -> CallbackPolicy {
        self.id = CallId::Body;
        self
    }

    /// The answer to a call that was taken: an HTTP status and a body. Default: 202, empty.
    pub fn reply(mut self, status: u16, body: impl Into<Bytes>) -> CallbackPolicy {
        (self.status, self.body) = (status, body.into());
        self
    }

    /// Takes calls by `GET` too, whose body is the parameters of the URL as a JSON object of texts: for links that a person follows.
    ///
    /// Caveat: whatever looks at a link before the person does, such as a scanner of mails, calls it as well. Default: `POST` alone.
    pub fn or_get(mut self) -> CallbackPolicy {
        self.takes_get = true;
        self
    }

    /// Takes calls by `PUT` too. Default: `POST` alone.
    pub fn or_put(mut self) -> CallbackPolicy {
        self.takes_put = true;
        self
    }

    /// Tells whether calls are taken by this method of HTTP, as [`Flows::callback_router`](crate::Flows#method.callback_router) asks.
    #[must_use]
    pub fn takes_method(&self, method: &str) -> bool {
        match method {
            "POST" => true,
            "GET" => self.takes_get,
            "PUT" => self.takes_put,
            _ => false,
        }
    }

    /// The HTTP status of the answer to a call that was taken.
    #[must_use]
    pub fn reply_status(&self) -> u16 {
        self.status
    }

    /// The body of the answer to a call that was taken.
    #[must_use]
    pub fn reply_body(&self) -> &Bytes {
        &self.body
    }

    /// The call as it goes to the flow, or the reason why it does not.
    pub(crate) fn apply(&self, mut call: Call, now: Timestamp, callback: &str) -> Result<Call, FlowsError> {
        let verified = match &self.verify {
            Some(verify) => verify.check(&call, now).map_err(FlowsError::Unverified)?,
            None => None,
        };
        if let Some(check) = self.check {
            let undecodable = |source| FlowsError::Undecodable { callback: callback.into(), source };
            check(call.body()).map_err(undecodable)?;
        }
        let id = verified.or_else(|| match &self.id {
            CallId::Given => None,
            CallId::Header(name) => call.header_value(name).map(str::to_owned),
            CallId::Body => Some(hex(&Sha256::digest(call.body()))),
        });
        if let Some(id) = id.filter(|id| !id.is_empty()) {
            call = call.id(id);
        }
        call.keep_headers(|name| self.kept.iter().any(|kept| kept.eq_ignore_ascii_case(name)));
        Ok(call)
    }
}
