//! All that is registered of flows: their code by name and version, and what holds for all of them.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

#[cfg(feature = "rhai")]
use super::input::Prepare;
use super::input::Validate;
use super::{elsewhere, parts_of};
use crate::engine::{Code, Limits, is_callback_named};
use crate::hub::Hub;
use crate::instance::Strays;
use crate::policy::CallbackPolicy;
use crate::token::Urls;

/// The code of one version of a flow.
#[derive(Clone)]
pub(super) struct Version {
    pub(super) code: Code,
    /// Refuses an input that is not what the code takes.
    pub(super) check: fn(&[u8]) -> Result<(), serde_json::Error>,
    /// Names the field in which such an input is not what the code takes.
    #[cfg(feature = "http")]
    pub(super) locate: fn(&[u8]) -> String,
}

/// All that is registered.
#[derive(Clone)]
pub(crate) struct Registry {
    pub(super) flows: HashMap<String, BTreeMap<u32, Version>>,
    /// The checks of inputs, by the names of flows.
    pub(super) validates: HashMap<String, Arc<Validate>>,
    /// The ways in which inputs are prepared, by the names of flows.
    #[cfg(feature = "rhai")]
    pub(super) prepares: HashMap<String, Arc<Prepare>>,
    pub(crate) urls: Option<Arc<Urls>>,
    /// Says where the router of another host is.
    #[cfg(feature = "http")]
    pub(super) peers: Option<Arc<super::serving::Peers>>,
    /// The policies, by the names of the flow and its callback.
    pub(super) policies: HashMap<(String, String), CallbackPolicy>,
    pub(crate) hub: Arc<Hub>,
    /// Questions to other hosts for news of their flows.
    pub(super) hearing: Arc<Semaphore>,
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
    /// A registry of nothing, with every setting at its default.
    pub(super) fn new() -> Registry {
        let day = Duration::from_secs(24 * 3_600);
        Registry {
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
        }
    }

    pub(crate) fn code(&self, name: &str, version: u32) -> Option<Code> {
        Some(self.flows.get(name)?.get(&version)?.code.clone())
    }

    /// The policy for the callback of this key of a flow: `name/id`.
    pub(super) fn policy(&self, flow: &str, callback: &str) -> Option<&CallbackPolicy> {
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
