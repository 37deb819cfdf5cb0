//! Flows on their way into a host.

use std::future::{Future, ready};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde::{Deserialize, Serialize};
use stable_interfaces::{HostBuilder, RetryPolicy};
use tokio::sync::{Semaphore, mpsc};

use super::registry::{Registry, Version};
use super::{Flows, FlowsError, elsewhere};
use crate::engine::Code;
use crate::flow::{Flow, FlowError, FlowResult};
use crate::instance::{FlowInstance, watch_strays};
use crate::policy::CallbackPolicy;
use crate::token::{UrlKeys, Urls};

/// The most that [`FlowsBuilder::max_value`] may be: so much that four of them would be too much for one commit.
const MAX_VALUE_BYTES: usize = 1024 * 1024;

/// The longest name of a callback with a policy, in bytes: within every branch it is whole in the callback's address.
const MAX_POLICY_NAME: usize = 64;

/// Flows on their way into a host.
#[derive(Clone)]
#[must_use = "flows are registered by `register`"]
pub struct FlowsBuilder {
    pub(super) registry: Registry,
    pub(super) invalid: Option<String>,
}

impl std::fmt::Debug for FlowsBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlowsBuilder").field("flows", &self.registry.flows.keys()).finish_non_exhaustive()
    }
}

impl Flows {
    /// Flows to register.
    pub fn builder() -> FlowsBuilder {
        FlowsBuilder { registry: Registry::new(), invalid: None }
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
    /// that it was [given](crate::Call::header).
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

    /// Makes these the flows of one process of a test.
    #[cfg(feature = "testing")]
    pub(crate) fn for_test(mut self, process: u64, fakes: Arc<crate::testing::fakes::Fakes>) -> FlowsBuilder {
        (self.registry.process, self.registry.fakes) = (process, Some(fakes));
        // The test replays them itself, in a process of their own.
        self.registry.rehearses = false;
        self
    }

    /// Registers the flows with a host, as the interface `flow`.
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
