//! The attempts of steps in a test: counted, and made up where the test says so.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use crate::engine::{Kind, name_of};
use crate::step::{Fatal, StepCx};

type BoxError = Box<dyn Error + Send + Sync>;
/// Makes up an attempt: its value as JSON, or its error.
pub(super) type Fake = Arc<dyn Fn(&StepCx) -> Result<Bytes, BoxError> + Send + Sync>;

/// The steps of one test, by their names.
#[derive(Default)]
pub(crate) struct Fakes(Mutex<HashMap<String, Known>>);

#[derive(Default)]
struct Known {
    fake: Option<Fake>,
    attempts: u32,
}

impl fmt::Debug for Fakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.0.lock();
        f.debug_map().entries(known.iter().map(|(name, known)| (name, known.attempts))).finish()
    }
}

impl Fakes {
    pub(super) fn set(&self, step: &str, fake: Fake) {
        self.0.lock().entry(name_of(Kind::Step, step)).or_default().fake = Some(fake);
    }

    pub(super) fn attempts(&self, step: &str) -> u32 {
        self.0.lock().get(&name_of(Kind::Step, step)).map_or(0, |known| known.attempts)
    }

    /// Counts an attempt, and says how it is made up, if it is.
    fn begin(&self, key: &str) -> Option<Fake> {
        let local = key.rsplit('/').next().unwrap_or(key);
        let name = local.split(['[', '#']).next().unwrap_or(local);
        let mut known = self.0.lock();
        let known = known.entry(name.to_owned()).or_default();
        known.attempts += 1;
        known.fake.clone()
    }
}

/// An attempt of a step, or what takes its place.
pub(crate) fn attempt<T, E, F, Fut>(
    run: &F,
    cx: StepCx,
) -> impl Future<Output = Result<T, BoxError>> + Send + use<T, E, F, Fut>
where
    F: Fn(StepCx) -> Fut,
    Fut: Future<Output = Result<T, E>> + Send,
    T: DeserializeOwned,
    E: Into<BoxError>,
{
    let fakes = cx.shared().fakes.get();
    let faked = fakes.and_then(|fakes| fakes.begin(cx.key())).map(|fake| fake(&cx));
    let real = faked.is_none().then(|| run(cx));
    async move {
        match (faked, real) {
            (Some(Ok(value)), _) => serde_json::from_slice(&value)
                .map_err(|error| Fatal::new(format!("the fake value of the step is of another type: {error}")).into()),
            (Some(Err(error)), _) => Err(error),
            (None, Some(real)) => real.await.map_err(Into::into),
            (None, None) => std::future::pending().await,
        }
    }
}
