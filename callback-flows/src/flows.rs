//! Flows as an application has them: what is registered, and the handle through which they are started and called.

#[cfg(test)]
mod bad_tokens;
mod census;
mod elsewhere;
mod everywhere;
#[cfg(all(test, feature = "testing"))]
mod in_parts;
mod input;
pub(crate) mod journals;
#[cfg(test)]
mod large;
#[cfg(feature = "http")]
mod serving;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::future::{Future, ready};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use serde::{Deserialize, Serialize};
use stable_interfaces::{
    Alarm, HostBuilder, Interface, KeyRange, NewPost, Posted, RegisterError, RequestError, RetryPolicy, Timestamp,
};
use tokio::sync::{Semaphore, mpsc};

use crate::command::Command;
use crate::engine::{Code, Limits, is_callback_named};
use crate::flow::{Flow, FlowError, FlowResult};
use crate::hash::{hex, short_hash};
use crate::hub::Hub;
use crate::instance::{Answer, FlowInstance, NEXT, Strays, TurnError, watch_strays};
use crate::journal::Message;
use crate::policy::CallbackPolicy;
use crate::status::{Outcome, STATUS_KEY, State, Status};
use crate::token::{Target, UrlKeys, Urls};
use crate::verify::Unverified;

#[cfg(feature = "rhai")]
pub(crate) use self::input::Prepare;
pub use self::input::Refused;
use self::input::Validate;

/// The largest body that is posted, in bytes: there has to be room for its headers.
pub(crate) const MAX_POSTED_BYTES: usize = 192 * 1024;
/// The most that [`FlowsBuilder::max_value`] may be: so much that four of them would be too much for one commit.
const MAX_VALUE_BYTES: usize = 1024 * 1024;
/// The longest name of a callback with a policy, in bytes: within every branch it is whole in the callback's address.
const MAX_POLICY_NAME: usize = 64;

pub(crate) use self::census::Kept;
pub(crate) use self::watch::Reader;

/// The code of one version of a flow.
#[derive(Clone)]
struct Version {
    code: Code,
    /// Refuses an input that is none.
    check: fn(&[u8]) -> Result<(), serde_json::Error>,
    /// Says in which field such an input is none.
    #[cfg(feature = "http")]
    locate: fn(&[u8]) -> String,
}

/// All that is registered.
#[derive(Clone)]
pub(crate) struct Registry {
    flows: HashMap<String, BTreeMap<u32, Version>>,
    /// By the names of flows.
    validates: HashMap<String, Arc<Validate>>,
    /// By the names of flows.
    #[cfg(feature = "rhai")]
    prepares: HashMap<String, Arc<Prepare>>,
    pub(crate) urls: Option<Arc<Urls>>,
    /// Says where the router of another host is.
    #[cfg(feature = "http")]
    peers: Option<Arc<serving::Peers>>,
    /// By the names of the flow and its callback.
    policies: HashMap<(String, String), CallbackPolicy>,
    pub(crate) hub: Arc<Hub>,
    /// Questions to other hosts for news of their flows.
    hearing: Arc<Semaphore>,
    pub(crate) limits: Limits,
    pub(crate) retention: Duration,
    pub(crate) tombstone: Duration,
    pub(crate) expiry: Duration,
    /// Flows are replayed as they park.
    pub(crate) rehearses: bool,
    /// Tells this process from others.
    pub(crate) process: u64,
    pub(crate) strays: Strays,
    /// The steps of a test.
    #[cfg(feature = "testing")]
    pub(crate) fakes: Option<Arc<crate::testing::fakes::Fakes>>,
}

impl Registry {
    pub(crate) fn code(&self, name: &str, version: u32) -> Option<Code> {
        Some(self.flows.get(name)?.get(&version)?.code.clone())
    }

    /// The policy for the callback of this key of a flow: `name/id`.
    fn policy(&self, flow: &str, callback: &str) -> Option<&CallbackPolicy> {
        let (name, _) = parts_of(flow);
        let is_for = |(of, callback_name): &(String, String)| *of == name && is_callback_named(callback, callback_name);
        self.policies.iter().find(|(key, _)| is_for(key)).map(|(_, policy)| policy)
    }

    /// The version that new flows of this name begin with.
    pub(crate) fn newest(&self, name: &str) -> Option<u32> {
        self.flows.get(name)?.last_key_value().map(|(version, _)| *version)
    }

    /// The version that goes on with this input where another one has ended a run: the newest that takes it.
    pub(crate) fn version_after(&self, name: &str, version: u32, input: &[u8]) -> u32 {
        let newest = self.newest(name).filter(|newest| self.check(name, *newest, input).is_ok());
        newest.map_or(version, |newest| newest.max(version))
    }

    /// Refuses an input that a version does not take.
    pub(crate) fn check(&self, name: &str, version: u32, input: &[u8]) -> Result<(), serde_json::Error> {
        let version = self.flows.get(name).and_then(|versions| versions.get(&version));
        version.map_or(Ok(()), |version| (version.check)(input))
    }
}

/// Flows on their way into a host.
#[derive(Clone)]
#[must_use = "flows are registered by `register`"]
pub struct FlowsBuilder {
    registry: Registry,
    invalid: Option<String>,
}

impl std::fmt::Debug for FlowsBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlowsBuilder").field("flows", &self.registry.flows.keys()).finish_non_exhaustive()
    }
}

impl FlowsBuilder {
    /// Registers a version of a flow: its name (1 to 64 of `a-z`, `0-9`, `_`, `-`), its version, and its code.
    ///
    /// New flows begin with the newest version, and each stays on the one that it began with: register that for as long as there are
    /// any. A flow whose version is not there is blocked until it is.
    pub fn flow<I, O, F, Fut>(mut self, name: &str, version: u32, code: F) -> FlowsBuilder
    where
        F: Fn(Flow, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = FlowResult<O>> + Send + 'static,
        // Of `DeserializeOwned` the compiler would not say that it can be derived.
        I: for<'de> Deserialize<'de> + Send + 'static,
        O: Serialize + 'static,
    {
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
        if name.is_empty() || name.len() > 64 || !name.bytes().all(is_name) {
            self.invalid.get_or_insert(format!("{name:?} cannot be the name of a flow"));
        }
        let code = Arc::new(code);
        let code: Code = Arc::new(move |flow, input| {
            let code = code.clone();
            let limit = flow.shared().limits.value_bytes;
            let input = match serde_json::from_slice(&input) {
                Ok(input) => input,
                Err(error) => {
                    return Box::pin(ready(Err(format!("its input is of another type: {error}").into())));
                }
            };
            // Not within another future, which would keep room for what this one was made of.
            Box::pin(code(flow, input).map(move |result| {
                let result = result.map_err(FlowError::into_stop)?;
                let result =
                    serde_json::to_vec(&result).map_err(|error| format!("its result cannot be JSON: {error}"))?;
                if result.len() > limit {
                    return Err(format!("its result has {} bytes, and may have {limit}", result.len()).into());
                }
                Ok(result.into())
            }))
        });
        let check = |input: &[u8]| serde_json::from_slice::<I>(input).map(drop);
        let version_of_code = Version {
            code,
            check,
            #[cfg(feature = "http")]
            locate: |input| {
                let mut json = serde_json::Deserializer::from_slice(input);
                serde_path_to_error::deserialize::<_, I>(&mut json)
                    .err()
                    .map_or_else(String::new, |e| e.path().to_string())
            },
        };
        let versions = self.registry.flows.entry(name.to_owned()).or_default();
        if versions.insert(version, version_of_code).is_some() {
            self.invalid.get_or_insert(format!("version {version} of the flow {name:?} is there twice"));
        }
        self
    }

    /// Sets the URL below which callbacks are called, such as `https://broker.example/callbacks`, and the keys that sign them. Needed where a
    /// flow asks for [`Callback::url`](crate::Callback::url). The same on all hosts: a flow that goes on at another one gives out the same URLs.
    pub fn callbacks(mut self, base: &str, keys: UrlKeys) -> FlowsBuilder {
        self.registry.urls = Some(Arc::new(Urls::new(base, keys)));
        self
    }

    /// Sets the policy for the calls of a callback, by the names of the flow and of its callback (at most 64 bytes), in whatever branch. It
    /// holds on every host that it is registered on, before any code of the flow has run. Default: every call is taken, with the headers
    /// that it was [given](Call::header).
    pub fn callback_policy(mut self, flow: &str, callback: &str, policy: CallbackPolicy) -> FlowsBuilder {
        if callback.is_empty() || callback.len() > MAX_POLICY_NAME {
            self.invalid.get_or_insert(format!("{callback:?} cannot be the name of a callback with a policy"));
        }
        if self.registry.policies.insert((flow.to_owned(), callback.to_owned()), policy).is_some() {
            self.invalid.get_or_insert(format!("the callback {callback:?} of the flow {flow:?} has two policies"));
        }
        self
    }

    /// The most entries of a flow's journal, and the most bytes; a flow with more is blocked. Default: 10,000 and 16 MiB.
    pub fn max_journal(mut self, entries: u64, bytes: usize) -> FlowsBuilder {
        (self.registry.limits.entries, self.registry.limits.bytes) = (entries, bytes);
        self
    }

    /// The largest input, result of a step, body of a call, and result of a flow, in bytes: at most 1 MiB (1,048,576). Default: 256 KiB.
    ///
    /// Whatever goes through the store of another host has at most 192 KiB all the same: a start or a call at a host that does not own the
    /// flow and cannot reach the one that does, the input of a [child](Flow::spawn), and the result that it tells its parent. A start or a
    /// call of more than 700 KiB is taken by the flow's owner alone.
    pub fn max_value(mut self, bytes: usize) -> FlowsBuilder {
        if bytes > MAX_VALUE_BYTES {
            self.invalid
                .get_or_insert(format!("values of {bytes} bytes cannot be kept, and up to {MAX_VALUE_BYTES} can"));
        }
        self.registry.limits.value_bytes = bytes;
        self
    }

    /// The time for which a flow is kept when it is over, and then its ID alone. Default: 7 days, then 30.
    pub fn retention(mut self, flow: Duration, id: Duration) -> FlowsBuilder {
        (self.registry.retention, self.registry.tombstone) = (flow, id);
        self
    }

    /// Replays each flow whenever it comes to wait, and blocks it if its code does not do again what it did: so a decision that is not in the
    /// journal, by the time, by chance or by what is in memory, is found at once. The code runs once more for that, without its steps and its log
    /// lines; a journal of more than 100 entries is replayed only when it has become longer by a tenth. Default: in debug builds.
    pub fn replay_at_parks(mut self, replays: bool) -> FlowsBuilder {
        self.registry.rehearses = replays;
        self
    }

    /// The same for one process of a test.
    #[cfg(feature = "testing")]
    pub(crate) fn for_test(mut self, process: u64, fakes: Arc<crate::testing::fakes::Fakes>) -> FlowsBuilder {
        (self.registry.process, self.registry.fakes) = (process, Some(fakes));
        // The test replays them itself, in a process of their own.
        self.registry.rehearses = false;
        self
    }

    /// Registers all of it with a host, as the interface `flow`.
    ///
    /// # Errors
    /// [`FlowsError::Invalid`] names what cannot be, [`FlowsError::Register`] if the host has such an interface already.
    pub fn register(self, host: &mut HostBuilder) -> Result<Flows, FlowsError> {
        if let Some(invalid) = self.invalid {
            return Err(FlowsError::Invalid(invalid));
        }
        if let Some(name) = self.registry.validates.keys().find(|name| !self.registry.flows.contains_key(*name)) {
            return Err(FlowsError::Invalid(format!(
                "the input of the flow {name:?} is validated, and no such flow is registered"
            )));
        }
        let is_unknown = |(flow, _): &&(String, String)| !self.registry.flows.contains_key(flow);
        if let Some((flow, callback)) = self.registry.policies.keys().find(is_unknown) {
            let what = format!("the callback {callback:?} has a policy, and its flow {flow:?} is not registered");
            return Err(FlowsError::Invalid(what));
        }
        // Those who listen to a host do not hear the one after it.
        let (strays, stray) = mpsc::unbounded_channel();
        let hearing = Arc::new(Semaphore::new(elsewhere::MAX_HEARING));
        let registry = Arc::new(Registry { hub: Arc::default(), hearing, strays, ..self.registry });
        let built = registry.clone();
        let interface = host.interface(move |id| FlowInstance::new(id, built.clone())).with_alarms().with_inbox();
        let interface = elsewhere::answering(interface, &registry);
        // A timer or a message of a flow is never given up: what ends processes blocks its flow.
        let retry = RetryPolicy::new().longest(Duration::from_secs(60)).attempts(u32::MAX);
        let interface = interface.retry(retry).max_crashes(u32::MAX).register().map_err(FlowsError::Register)?;
        host.beside(watch_strays(interface.clone(), stray));
        let flows = Flows { registry, interface };
        host.beside(flows.clone().take_census());
        host.beside(flows.clone().follow_others());
        Ok(flows)
    }
}

/// An application's handle on its flows: cheap to clone, for any task of the process, on every host.
///
/// Each request goes to the flow at once: on the host that owns it, or through the host's
/// [`transport`](stable_interfaces::HostBuilder::transport) to that one. Where the owner cannot be reached within two seconds, it goes into the
/// flow's inbox, from where the flow's next owner takes it.
#[derive(Clone)]
pub struct Flows {
    registry: Arc<Registry>,
    interface: Interface<FlowInstance>,
}

impl std::fmt::Debug for Flows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flows").field("flows", &self.registry.flows.keys()).finish_non_exhaustive()
    }
}

/// A flow in a list: [`Flows::list`].
#[derive(Debug, Clone)]
pub struct Listed(Alarm);

impl Listed {
    /// The name of its code.
    #[must_use]
    pub fn name(&self) -> &str {
        parts_of(self.0.instance()).0
    }

    /// The ID that it was started under.
    #[must_use]
    pub fn id(&self) -> &str {
        parts_of(self.0.instance()).1
    }

    /// The moment at which it is looked at next by itself: its next timer, or the end of the time for which it is kept.
    #[must_use]
    pub fn next(&self) -> Timestamp {
        self.0.due()
    }
}

/// The answer to [`Flows::start`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Started {
    /// The flow is durable, and has begun.
    New,
    /// The flow was started before, with the same input.
    Already,
    /// The start is durable, and the flow's owner, which is not this host, will begin it: it is the first start of its ID that was stored.
    Posted,
}

/// The answer to [`Flows::deliver`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delivered {
    /// The flow has it.
    Taken,
    /// The flow had it before.
    Already,
    /// The call is durable, and the flow's owner will take it.
    Posted,
}

/// A call of a callback.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Call {
    id: Option<String>,
    headers: Vec<(Arc<str>, Arc<str>)>,
    body: Bytes,
}

impl std::fmt::Debug for Call {
    /// Without its body and the values of its headers, which may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let headers: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Call")
            .field("id", &self.id)
            .field("headers", &headers)
            .field("bytes", &self.body.len())
            .finish()
    }
}

impl Call {
    /// A call with this body: at most 256 KiB, or what [`FlowsBuilder::max_value`] says, at the host that owns the flow, and 192 KiB at one that
    /// cannot reach that host.
    #[must_use]
    pub fn new(body: impl Into<Bytes>) -> Call {
        Call { body: body.into(), ..Call::default() }
    }

    /// The sender's ID for it: the flow takes one call of an ID for a callback, for as long as it is going. Default: none, and each
    /// call counts.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Call {
        self.id = Some(id.into());
        self
    }

    /// Adds a header. It is kept for the flow's code, unless its callback has a [policy](FlowsBuilder::callback_policy) that does not name it.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Call {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The body, as it came.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The headers, in the order in which they were given.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers.iter().map(|(name, value)| (&**name, &**value))
    }

    /// The first value of a header, whose name is compared without regard to case.
    #[must_use]
    pub fn header_value(&self, name: &str) -> Option<&str> {
        self.header_values(name).next()
    }

    pub(crate) fn header_values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers().filter(move |(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The same, with an ID.
    #[cfg(feature = "testing")]
    pub(crate) fn or_id(mut self, id: impl FnOnce() -> String) -> Call {
        self.id.get_or_insert_with(id);
        self
    }

    pub(crate) fn keep_headers(&mut self, is_kept: impl Fn(&str) -> bool) {
        self.headers.retain(|(name, _)| is_kept(name));
    }

    fn size(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum::<usize>();
        self.body.len() + headers + self.id.as_ref().map_or(0, String::len)
    }
}

/// The reason why something asked of flows was not done. Nothing happened, but where that is said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlowsError {
    /// No flow of that name is registered.
    #[error("no flow `{0}` is registered")]
    UnknownFlow(String),
    /// The names, versions or IDs that were given cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The input is not what the flow takes.
    #[error("the input is not what `{flow}` takes")]
    Input {
        /// The name of the flow.
        flow: String,
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
    /// The application's own check does not take the input: [`FlowsBuilder::validate`].
    #[error("the input is refused")]
    Refused(#[source] Refused),
    /// Something is too large.
    #[error("{what} has {bytes} bytes, and may have {limit}")]
    TooLarge {
        /// The name of what is too large.
        what: &'static str,
        /// The size of what is too large.
        bytes: usize,
        /// The largest that it may have.
        limit: usize,
    },
    /// A flow of that ID was started with another input.
    #[error("the flow was started with another input")]
    Conflict,
    /// There is no such flow, or the token is none of ours.
    #[error("there is no such flow")]
    NotFound,
    /// The flow, or the callback, is over.
    #[error("the flow or its callback is over")]
    Gone,
    /// The flow has more messages that its code has not taken than it may: 10,000. Try again later.
    #[error("too many messages wait for the flow; try again later")]
    TooManyUnread,
    /// A call is not signed as it should be.
    #[error("the call cannot be shown to come from whom it should come from")]
    Unverified(#[source] Unverified),
    /// The body of a call is not what its callback takes.
    #[error("the body is not what `{callback}` takes")]
    Undecodable {
        /// The full name of the callback.
        callback: String,
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
    /// A reader of events was too slow for so many.
    #[error("{0} events were missed")]
    Missed(u64),
    /// The host has an interface of this name.
    #[error("flows cannot be registered")]
    Register(#[source] RegisterError),
    /// The flow or the store could not be reached, or its answer is not known. Try again: an ID keeps it from happening twice.
    #[error("the flow cannot be reached; try again")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The rows that are stored of the flow cannot be read.
    #[error("what is stored of the flow cannot be read")]
    Unreadable(#[source] serde_json::Error),
}

impl FlowsError {
    /// Tells whether the same may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, FlowsError::Unavailable(_) | FlowsError::TooManyUnread)
    }
}

pub(crate) fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> FlowsError {
    FlowsError::Unavailable(error.into())
}

impl Flows {
    /// Flows to register.
    pub fn builder() -> FlowsBuilder {
        let day = Duration::from_secs(24 * 3_600);
        let registry = Registry {
            flows: HashMap::new(),
            validates: HashMap::new(),
            #[cfg(feature = "rhai")]
            prepares: HashMap::new(),
            urls: None,
            #[cfg(feature = "http")]
            peers: None,
            policies: HashMap::new(),
            hub: Arc::default(),
            hearing: Arc::new(Semaphore::new(elsewhere::MAX_HEARING)),
            limits: Limits::default(),
            retention: 7 * day,
            tombstone: 30 * day,
            expiry: 365 * day,
            rehearses: cfg!(debug_assertions),
            // Keyed at random.
            process: RandomState::new().hash_one(0_u8),
            strays: mpsc::unbounded_channel().0,
            #[cfg(feature = "testing")]
            fakes: None,
        };
        FlowsBuilder { registry, invalid: None }
    }

    /// Starts a flow under an ID of the caller's choice. When this returns, it is durable.
    ///
    /// The same ID and input again are [`Started::Already`], so it may be repeated.
    ///
    /// # Errors
    /// [`FlowsError`]: an unknown name, an ID that cannot be one, an input that does not fit, is refused or is larger than it
    /// [may be](FlowsBuilder::max_value), another input under this ID, or a store that cannot be reached.
    pub async fn start(&self, name: &str, id: &str, input: &(impl Serialize + ?Sized)) -> Result<Started, FlowsError> {
        if !self.registry.flows.contains_key(name) {
            return Err(FlowsError::UnknownFlow(name.into()));
        }
        let input = serde_json::to_vec(input).map_err(|source| FlowsError::Input { flow: name.into(), source })?;
        self.start_json(name, id, input.into()).await
    }

    /// Hands a call of a callback to its flow: `token` is the last part of the [URL](crate::Callback::url), or all of it. When this
    /// returns, the call is durable.
    ///
    /// A token is checked without a look at the store, and then the [policy](FlowsBuilder::callback_policy) of its callback. The owner of a
    /// flow knows whether it takes the call. Where it cannot be reached, the call is stored, unless the flow is known to be over: a call that
    /// is too late, or one too many, is dropped by the owner, and counted.
    ///
    /// # Errors
    /// [`FlowsError::NotFound`] for a token that is none of ours, [`FlowsError::Gone`] where the flow or the callback is over,
    /// [`FlowsError::Unverified`] and [`FlowsError::Undecodable`] by the policy, [`FlowsError::TooManyUnread`], [`FlowsError::TooLarge`],
    /// [`FlowsError::Unavailable`].
    pub async fn deliver(&self, token: &str, call: Call) -> Result<Delivered, FlowsError> {
        let target = self.target(token).ok_or(FlowsError::NotFound)?;
        self.deliver_to(target, call).await
    }

    /// As [`deliver`](Self::deliver), to the callback of a token that has been checked.
    pub(crate) async fn deliver_to(&self, target: Target, call: Call) -> Result<Delivered, FlowsError> {
        let call = match self.policy_of(&target) {
            Some(policy) => {
                let clock = self.interface.clock().ok_or_else(|| unavailable(RequestError::NotStarted::<TurnError>))?;
                policy.apply(call, clock.now(), &target.callback)?
            }
            None => call,
        };
        self.hand_over(&target.flow, Some(target.run), target.callback, call).await
    }

    /// The policy for the calls of the callback that a token is of, such as for the answer to them; `None` if it has none, or the token is none
    /// of ours.
    #[must_use]
    pub fn policy(&self, token: &str) -> Option<&CallbackPolicy> {
        self.policy_of(&self.target(token)?)
    }

    pub(crate) fn policy_of(&self, target: &Target) -> Option<&CallbackPolicy> {
        self.registry.policy(&target.flow, &target.callback)
    }

    /// The callback that a token is of, if it is one of ours. Without a look at the store.
    pub(crate) fn target(&self, token: &str) -> Option<Target> {
        let token = token.rsplit('/').next().unwrap_or(token);
        self.registry.urls.as_ref()?.keys.check(token)
    }

    /// Hands a message to a flow, or stores it for its owner: for a callback of this run, or of whichever run is going.
    pub(crate) async fn hand_over(
        &self,
        flow: &str,
        run: Option<u32>,
        callback: Arc<str>,
        call: Call,
    ) -> Result<Delivered, FlowsError> {
        fits("the call", call.size(), self.registry.limits.value_bytes)?;
        let size = call.size();
        let Call { id, headers, body } = call;
        // With one of its own it is taken once, however often it is sent.
        let id = id
            .filter(|id| !id.is_empty())
            .unwrap_or_else(|| self.interface.random().map_or_else(String::new, |r| hex(&r.next_u64().to_be_bytes())));
        let id: Arc<str> = id.into();
        let call = (callback.clone(), id.clone());
        let message = Message { id, headers, body };
        let command = Command::Deliver { run, callback, message };
        match self.ask(flow, command.clone()).await? {
            Some(Answer::Done) => return Ok(Delivered::Taken),
            Some(Answer::Already) => return Ok(Delivered::Already),
            Some(Answer::Gone) => return Err(FlowsError::Gone),
            Some(Answer::Full) => return Err(FlowsError::TooManyUnread),
            Some(Answer::NotFound | Answer::Conflict) => return Err(FlowsError::NotFound),
            Some(Answer::Behind) | None => {}
        }
        fits("a call that is stored for the owner of its flow", size, MAX_POSTED_BYTES)?;
        // The post of a call has the ID of that call, so that a second one does not even lie in the inbox.
        let post = Some(format!("call-{}", short_hash(format!("{}\0{}", call.0, call.1).as_bytes())));
        // One that is known to be over takes nothing any more; that it could not be looked at is no reason to refuse.
        let (posted, status) = tokio::join!(self.post(flow, post, command), self.status(flow));
        match status {
            Ok(Some(status)) if status.state.is_over() => Err(FlowsError::Gone),
            _ => posted.map(|_| Delivered::Posted),
        }
    }

    /// The name and the ID of the flow that a callback's token is for, without a look at the store; `None` for a token that is none
    /// of ours. Such as for the [`result`](Self::result) of a flow that is over, for who calls it once more.
    #[must_use]
    pub fn flow_of(&self, token: &str) -> Option<(String, String)> {
        let target = self.target(token)?;
        let (name, id) = parts_of(&target.flow);
        Some((name.to_owned(), id.to_owned()))
    }

    /// Cancels a flow: its code is dropped where it waits, and what it has registered to [undo](Flow::undo) is undone.
    ///
    /// # Errors
    /// [`FlowsError::NotFound`] where the flow's owner can be reached, [`FlowsError::Gone`] where it is over, [`FlowsError::Unavailable`].
    pub async fn cancel(&self, name: &str, id: &str) -> Result<(), FlowsError> {
        self.command(name, id, "cancel", Command::Cancel).await
    }

    /// Lets a blocked flow try again, with the code and the world as they are now. Does nothing to one that is not blocked.
    ///
    /// # Errors
    /// As [`cancel`](Self::cancel).
    pub async fn resume(&self, name: &str, id: &str) -> Result<(), FlowsError> {
        self.command(name, id, "resume", Command::Resume).await
    }

    async fn command(&self, name: &str, id: &str, post: &str, command: Command) -> Result<(), FlowsError> {
        let flow = identity(name, id)?;
        match self.ask(&flow, command.clone()).await? {
            Some(Answer::NotFound) => Err(FlowsError::NotFound),
            Some(Answer::Gone) => Err(FlowsError::Gone),
            Some(_) => Ok(()),
            // One that is known to be over is not asked any more.
            None => match self.status(&flow).await {
                Ok(Some(status)) if status.state.is_over() => Err(FlowsError::Gone),
                _ => self.post(&flow, Some(post.into()), command).await.map(drop),
            },
        }
    }

    /// Flows that are going or are kept, from any host: at most `limit`, after the one named by `after`, in no order of use. What comes
    /// or goes meanwhile may be missing, or there twice.
    ///
    /// # Errors
    /// [`FlowsError::Unavailable`].
    pub async fn list(&self, after: Option<&Listed>, limit: usize) -> Result<Vec<Listed>, FlowsError> {
        let mut found: Vec<Listed> = Vec::new();
        let mut after = after.map(|listed| listed.0.clone());
        while found.len() < limit {
            let asked = limit - found.len();
            let page = self.interface.all_alarms(after.as_ref(), asked).await.map_err(unavailable)?;
            let is_last = page.len() < asked;
            after = page.last().cloned().or(after);
            // Every flow has one of this name.
            found.extend(page.into_iter().filter(|alarm| alarm.id() == NEXT).map(Listed));
            if is_last {
                break;
            }
        }
        Ok(found)
    }

    /// The outcome of a flow, from any host; `None` while it is going.
    ///
    /// # Errors
    /// [`FlowsError::NotFound`], and as [`get`](Self::get).
    pub async fn result(&self, name: &str, id: &str) -> Result<Option<Outcome>, FlowsError> {
        let flow = identity(name, id)?;
        let status = self.status(&flow).await?.ok_or(FlowsError::NotFound)?;
        self.outcome(&flow, &status).await
    }

    /// The outcome of a flow with this status; `None` while it is going.
    pub(crate) async fn outcome(&self, flow: &str, status: &Status) -> Result<Option<Outcome>, FlowsError> {
        Ok(Some(match &status.state {
            State::Failed { error } => Outcome::Failed(error.clone()),
            State::Cancelled => Outcome::Cancelled,
            State::Purged => Outcome::Purged,
            State::Done => match self.result_of(flow, status).await? {
                Some(json) => Outcome::Done(serde_json::from_slice(&json).map_err(FlowsError::Unreadable)?),
                // Purged between the two reads.
                None => Outcome::Purged,
            },
            _ => return Ok(None),
        }))
    }

    /// The URL of a callback; empty where there are no keys.
    #[cfg(feature = "testing")]
    pub(crate) fn url(&self, flow: &str, callback: &str) -> String {
        self.registry.urls.as_ref().map_or_else(String::new, |urls| urls.of(flow, crate::instance::RUN, callback))
    }

    async fn post(&self, flow: &str, id: Option<String>, command: Command) -> Result<Posted, FlowsError> {
        let mut post = NewPost::new(command.encode());
        if let Some(id) = id {
            post = post.id(id);
        }
        self.interface.post(flow, post).await.map_err(unavailable)
    }

    async fn status(&self, flow: &str) -> Result<Option<Status>, FlowsError> {
        let rows = self.stored(flow, KeyRange::from(STATUS_KEY).limit(1)).await?;
        let status = rows.first().map(|(_, status)| Status::from_stored(status));
        status.transpose().map_err(FlowsError::Unreadable)
    }

    async fn stored(&self, flow: &str, range: KeyRange) -> Result<Vec<(Arc<str>, Bytes)>, FlowsError> {
        self.interface.stored(flow, range).await.map_err(unavailable)
    }
}

fn fits(what: &'static str, bytes: usize, limit: usize) -> Result<(), FlowsError> {
    if bytes > limit { Err(FlowsError::TooLarge { what, bytes, limit }) } else { Ok(()) }
}

/// The ID of a flow's instance.
pub(crate) fn identity(name: &str, id: &str) -> Result<String, FlowsError> {
    let flow = format!("{name}/{id}");
    if id.is_empty() {
        return Err(FlowsError::Invalid("the ID of a flow is empty".into()));
    }
    match stable_interfaces::store::check_id(&flow) {
        Ok(()) => Ok(flow),
        Err(reason) => Err(FlowsError::Invalid(format!("{id:?} cannot be the ID of a flow: {reason}"))),
    }
}

/// The name and the ID of a flow that is an instance of this ID.
pub(crate) fn parts_of(flow: &str) -> (&str, &str) {
    flow.split_once('/').unwrap_or((flow, ""))
}

/// A value that is stored in several rows.
pub(crate) fn joined(rows: &[(Arc<str>, Bytes)]) -> Vec<u8> {
    rows.iter().flat_map(|(_, chunk)| chunk.iter().copied()).collect()
}
