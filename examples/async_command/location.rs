//! Creating a location: one function that reserves a name, asks a partner, and has somebody else write the result down.
//!
//! Read it from top to bottom: there is nothing more to it. Whatever has been done is undone if a later part fails or the command is
//! cancelled, the last first, and goes on after a crash where it was. `world.rs` has those who are asked here, and `web.rs` the doors
//! through which commands come in and their outcomes go out.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use callback_flows::{CallbackError, Flow, FlowError, FlowResult, Flows, FlowsBuilder, Refused, StepError};
use serde::{Deserialize, Serialize};
use stable_interfaces::{
    ContextError, Handle, HostBuilder, Interface, NewPost, RegisterError, StableInterface, Timestamp,
};

use crate::web;
use crate::world::{
    ATLAS, Assign, Atlas, Change, GiveBack, Holder, List, Name, OFFICE, PlotOf, Release, Reserve, Show, Survey,
    Surveyor, key_of,
};

/// The name of the flow, which is a part of its paths.
pub(crate) const LOCATION: &str = "location";
/// The reason of one whose name another location has.
pub(crate) const NAME_TAKEN: &str = "Another location has this name.";
/// The longest name, and the longest description, in characters.
pub(crate) const MAX_NAME: usize = 60;
pub(crate) const MAX_DESCRIPTION: usize = 280;
/// The longest that one may be slow, in seconds.
pub(crate) const MAX_SLOW: u64 = 600;

/// A location to be created: the input of the flow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewLocation {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) description: String,
    /// To see one that takes its time: the seconds that the surveyor needs.
    #[serde(default)]
    pub(crate) slow: u64,
    /// To see one that fails: 1.
    #[serde(default)]
    pub(crate) fail: u64,
}

/// A location that exists: the result of the flow.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Location {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) plot: String,
    pub(crate) created_at: Timestamp,
}

/// The reason for which there is no location: the value of `creating-location-failed`.
#[derive(Debug, Serialize)]
struct Failure {
    /// The field of the input that it is about, if it is about one.
    field: Option<&'static str>,
    reason: String,
}

/// The instances that are asked on the way.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) names: Interface<Name>,
    pub(crate) surveyor: Interface<Surveyor>,
    pub(crate) atlas: Interface<Atlas>,
}

impl World {
    /// Registers all of them with a host. `told` has the flows that the atlas tells of what it has written: to be set before the host starts.
    pub(crate) fn register(host: &mut HostBuilder, told: &Arc<OnceLock<Flows>>) -> Result<World, RegisterError> {
        let told = told.clone();
        let names = host.interface(|_id| Name).forward::<Reserve>("reserve").forward::<Release>("release");
        let names = names.forward::<Holder>("holder").register()?;
        let surveyor = host.interface(|_id| Surveyor).forward::<Assign>("assign").forward::<GiveBack>("give-back");
        let surveyor = surveyor.forward::<Survey>("survey").forward::<PlotOf>("plot-of").register()?;
        let atlas = host.interface(move |_id| Atlas { flows: told.clone() }).with_inbox();
        let atlas = atlas.forward_with_text_errors::<Show>("show").forward_with_text_errors::<List>("list");
        Ok(World { names, surveyor, atlas: atlas.register()? })
    }

    /// The flow that creates locations in this world, to be registered.
    pub(crate) fn flows(self) -> FlowsBuilder {
        let builder = Flows::builder().flow(LOCATION, 1, move |flow, new| create(self.clone(), flow, new));
        builder.validate(LOCATION, validate)
    }
}

/// Refuses what can be seen to be wrong, before anything is stored.
pub(crate) fn validate(new: &NewLocation) -> Result<(), Refused> {
    let name = new.name.trim();
    if name.is_empty() {
        return Err(Refused::new("name", "A location needs a name."));
    }
    if name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Refused::new("name", format!("A name has at most {MAX_NAME} characters, in one line.")));
    }
    if new.description.chars().count() > MAX_DESCRIPTION {
        return Err(Refused::new("description", format!("A description has at most {MAX_DESCRIPTION} characters.")));
    }
    if new.slow > MAX_SLOW {
        return Err(Refused::new("slow", format!("It may take at most {MAX_SLOW} seconds.")));
    }
    if new.fail > 1 {
        return Err(Refused::new("fail", "It is 1 to fail, and else 0."));
    }
    Ok(())
}

/// Creates a location under the flow's own ID, which the client chose, and says how that has ended.
async fn create(world: World, flow: Flow, new: NewLocation) -> FlowResult<Location> {
    match build(&world, &flow, &new).await {
        Ok(location) => {
            flow.resource(&format!("/locations/{}", web::segment(&location.id)))?;
            flow.emit("location-created", &location)?;
            Ok(location)
        }
        Err(failure) => {
            flow.emit("creating-location-failed", &failure)?;
            Err(FlowError::new(failure.reason))
        }
    }
}

async fn build(world: &World, flow: &Flow, new: &NewLocation) -> Result<Location, Failure> {
    let (id, name, key) = (flow.id().to_owned(), new.name.trim(), key_of(&new.name));

    flow.progress("reserving the name")?;
    // Each undo before what it undoes, for that may have happened though its answer was lost; to undo what has not does no harm.
    undo_by(flow, "release the name", (&world.names, &key), &id, |by| Release { by });
    let reserve = || Reserve { by: id.clone() };
    let holder = flow.step("reserve the name").run(|_| world.names.request(&key, reserve())).await?;
    if holder != id {
        return Err(Failure { field: Some("name"), reason: NAME_TAKEN.to_owned() });
    }

    flow.progress("asking the surveyor for a plot")?;
    undo_by(flow, "give the plot back", (&world.surveyor, OFFICE), &id, GiveBack);
    let plot = flow.step("ask for a plot").run(|_| world.surveyor.request(OFFICE, Assign(id.clone()))).await?;
    if new.slow > 0 {
        flow.progress("waiting for the surveyor")?;
        flow.sleep(Duration::from_secs(new.slow)).await;
    }
    let finds_fault = new.fail > 0;
    let survey = flow.step("survey").run(|_| world.surveyor.request(OFFICE, Survey { finds_fault }));
    if let Some(reason) = survey.await? {
        return Err(Failure { field: None, reason });
    }

    flow.progress("drawing it on the map")?;
    let (name, description) = (name.to_owned(), new.description.trim().to_owned());
    let location = Location { id: id.clone(), name, description, plot, created_at: flow.now() };
    let atlas = world.atlas.clone();
    flow.undo("take it off the map", move |_| {
        let (atlas, change) = (atlas.clone(), NewPost::json(&Change::Remove(id.clone())));
        async move { post(&atlas, change?).await }
    });
    let mut written = flow.signal::<()>("written");
    flow.step("draw it on the map")
        .run(async |step| {
            post(&world.atlas, NewPost::json(&Change::Put(location.clone()))?.id(step.idempotency_key())).await
        })
        .await?;
    // Only now does it exist for those who look.
    written.next().await?;
    Ok(location)
}

async fn post(atlas: &Interface<Atlas>, change: NewPost) -> anyhow::Result<()> {
    atlas.post(ATLAS, change).await?;
    Ok(())
}

/// Has an instance do something if the flow fails or is cancelled.
fn undo_by<I, M>(
    flow: &Flow,
    name: &str,
    (interface, instance): (&Interface<I>, &str),
    id: &str,
    message: fn(String) -> M,
) where
    I: Handle<M, Reply = ()> + StableInterface<Error = ContextError>,
    M: Send + 'static,
{
    let (interface, instance, id) = (interface.clone(), instance.to_owned(), id.to_owned());
    flow.undo(name, move |_| {
        let (interface, instance, message) = (interface.clone(), instance.clone(), message(id.clone()));
        async move { interface.request(&instance, message).await }
    });
}

impl From<StepError> for Failure {
    /// Of one who has been asked for so long that it is given up.
    fn from(error: StepError) -> Failure {
        Failure { field: None, reason: error.to_string() }
    }
}

impl From<CallbackError> for Failure {
    fn from(error: CallbackError) -> Failure {
        Failure { field: None, reason: error.to_string() }
    }
}

impl From<FlowError> for Failure {
    fn from(error: FlowError) -> Failure {
        Failure { field: None, reason: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use callback_flows::Outcome;
    use stable_interfaces::testing::SimClock;
    use stable_interfaces::{Host, MemoryStore};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_location_is_announced_when_the_atlas_has_said_that_it_is_written_and_not_before() {
        let clock = Arc::new(SimClock::new(Timestamp::UNIX_EPOCH));
        let mut host = Host::local(MemoryStore::with_clock(clock.clone())).clock(clock);
        let told = Arc::default();
        let world = World::register(&mut host, &told).expect("they are not there yet");
        let flows = world.clone().flows().register(&mut host).expect("nor are they");
        let host = host.start().await.expect("it starts");
        let new = NewLocation { name: "Lisbon".to_owned(), ..NewLocation::default() };
        flows.start(LOCATION, "1", &new).await.expect("it is durable");
        // The atlas writes it, and can tell nobody.
        let is_there = async || world.atlas.request(ATLAS, Show("1".to_owned())).await.expect("an answer").is_some();
        while !is_there().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        let status = flows.get(LOCATION, "1").await.expect("an answer").expect("it was started");
        assert!(!status.state.is_over() && status.resource.is_none(), "{status:?}");
        told.set(flows.clone()).expect("it was not set");
        let outcome = flows.ended(LOCATION, "1").await.expect("an end");
        assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
        host.drain(Duration::from_secs(1)).await;
    }

    fn refused(change: impl FnOnce(&mut NewLocation)) -> Option<String> {
        let mut new = NewLocation { name: "Lisbon".to_owned(), ..NewLocation::default() };
        change(&mut new);
        validate(&new).err().map(|refused| refused.field().to_owned())
    }

    #[test]
    fn an_input_is_refused_at_the_field_that_is_wrong() {
        assert_eq!(refused(|_| {}), None);
        assert_eq!(refused(|new| new.name = " \t".to_owned()).as_deref(), Some("name"));
        assert_eq!(refused(|new| new.name = "a\u{7}b".to_owned()).as_deref(), Some("name"));
        assert_eq!(refused(|new| new.name = "ü".repeat(MAX_NAME)), None);
        assert_eq!(refused(|new| new.name = "ü".repeat(MAX_NAME + 1)).as_deref(), Some("name"));
        assert_eq!(refused(|new| new.description = "x".repeat(MAX_DESCRIPTION + 1)).as_deref(), Some("description"));
        assert_eq!(refused(|new| new.slow = MAX_SLOW + 1).as_deref(), Some("slow"));
        assert_eq!(refused(|new| new.fail = 2).as_deref(), Some("fail"));
    }

    #[test]
    fn names_that_look_alike_are_one() {
        assert_eq!(key_of(" New  YORK"), key_of("new york"));
        assert_ne!(key_of("newyork"), key_of("new york"));
    }
}
