//! The world around a flow: the registry of names, a partner, and the atlas, which is what is read.
//!
//! Each is an interface of its own, and knows nothing of flows, but that the atlas tells one that its location is written. The partner
//! is played here; it would be a service of somebody else. On a fleet an instance may be another host's: its messages cross to that.

use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result};
use callback_flows::{Call, Flows, FlowsError};
use serde::{Deserialize, Serialize};
use stable_interfaces::{Context, ContextError, Handle, Message, OnMessage, StableInterface};

use crate::location::{LOCATION, Location};

/// The one instance of the surveyor, and the one of the atlas.
pub(crate) const OFFICE: &str = "office";
pub(crate) const ATLAS: &str = "atlas";
/// The most locations that a list shows.
const SHOWN: usize = 50;

/// A name of locations, which one location has at a time: the instance's ID is the [key](key_of) of the name.
#[derive(Debug)]
pub(crate) struct Name;

/// The name as it is compared: `New  York` is `new york`.
pub(crate) fn key_of(name: &str) -> String {
    name.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

impl StableInterface for Name {
    const NAME: &'static str = "name";
    type Error = ContextError;
}

/// Takes the name unless somebody has it, and says who has it then.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reserve {
    pub(crate) by: String,
}

impl Handle<Reserve> for Name {
    type Reply = String;
    async fn handle(&mut self, cx: &mut Context, Reserve { by }: Reserve) -> Result<String, ContextError> {
        if let Some(holder) = cx.get("holder").await? {
            return Ok(holder);
        }
        cx.put("holder", &by)?;
        Ok(by)
    }
}

/// Gives the name up, if it is this location that has it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Release {
    pub(crate) by: String,
}

impl Handle<Release> for Name {
    type Reply = ();
    async fn handle(&mut self, cx: &mut Context, Release { by }: Release) -> Result<(), ContextError> {
        match cx.get::<String>("holder").await? {
            Some(holder) if holder == by => cx.delete("holder"),
            _ => Ok(()),
        }
    }
}

/// Says who has the name.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Holder;

impl Handle<Holder> for Name {
    type Reply = Option<String>;
    async fn handle(&mut self, cx: &mut Context, _: Holder) -> Result<Option<String>, ContextError> {
        cx.get("holder").await
    }
}

/// The partner: hands out plots of land, and looks whether one can build there.
#[derive(Debug)]
pub(crate) struct Surveyor;

impl StableInterface for Surveyor {
    const NAME: &'static str = "surveyor";
    type Error = ContextError;
}

/// Gives a location a plot, the same one if it is asked again.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Assign(pub(crate) String);

impl Handle<Assign> for Surveyor {
    type Reply = String;
    async fn handle(&mut self, cx: &mut Context, Assign(location): Assign) -> Result<String, ContextError> {
        let key = plot_key(&location);
        if let Some(plot) = cx.get(&key).await? {
            return Ok(plot);
        }
        let number: u64 = cx.get("plots").await?.unwrap_or(0) + 1;
        let plot = format!("{}{}", char::from(b'A' + (number % 26) as u8), 100 + number * 7 % 900);
        cx.put("plots", &number)?;
        cx.put(&key, &plot)?;
        Ok(plot)
    }
}

/// Takes the plot of a location back, if it has one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct GiveBack(pub(crate) String);

impl Handle<GiveBack> for Surveyor {
    type Reply = ();
    async fn handle(&mut self, cx: &mut Context, GiveBack(location): GiveBack) -> Result<(), ContextError> {
        cx.delete(&plot_key(&location))
    }
}

/// Looks at the plot: the reason for which one cannot build there, if there is one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Survey {
    pub(crate) finds_fault: bool,
}

impl Handle<Survey> for Surveyor {
    type Reply = Option<String>;
    async fn handle(&mut self, _: &mut Context, survey: Survey) -> Result<Option<String>, ContextError> {
        Ok(survey.finds_fault.then(|| "The surveyor found no firm ground there.".to_owned()))
    }
}

/// Says which plot a location has.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PlotOf(pub(crate) String);

impl Handle<PlotOf> for Surveyor {
    type Reply = Option<String>;
    async fn handle(&mut self, cx: &mut Context, PlotOf(location): PlotOf) -> Result<Option<String>, ContextError> {
        cx.get(&plot_key(&location)).await
    }
}

fn plot_key(location: &str) -> String {
    format!("plot/{location}")
}

/// The read model: all locations that exist. Changes are posted to it, and it writes them when it comes to them.
///
/// One instance has them all, which is enough for some thousands.
#[derive(Debug)]
pub(crate) struct Atlas {
    /// Set before the host starts.
    pub(crate) flows: Arc<OnceLock<Flows>>,
}

/// A change of the atlas.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Change {
    Put(Location),
    Remove(String),
}

impl StableInterface for Atlas {
    const NAME: &'static str = "atlas";
    type Error = anyhow::Error;
}

impl OnMessage for Atlas {
    async fn on_message(&mut self, cx: &mut Context, message: &Message) -> Result<()> {
        let location = match message.json()? {
            Change::Remove(id) => return Ok(cx.delete(&location_key(&id))?),
            Change::Put(location) => location,
        };
        cx.put(&location_key(&location.id), &location)?;
        // Whoever is told that it is there finds it. Should this process die here, the message comes again, and so does the word.
        cx.commit().await?;
        let flows = self.flows.get().context("the flows are not registered yet")?;
        match flows.signal_call(LOCATION, &location.id, "written", Call::new("null").id("written")).await {
            // The last one to one that was cancelled, which has posted a removal.
            Ok(_) | Err(FlowsError::Gone | FlowsError::NotFound) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Shows a location, if it exists.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Show(pub(crate) String);

impl Handle<Show> for Atlas {
    type Reply = Option<Location>;
    async fn handle(&mut self, cx: &mut Context, Show(id): Show) -> Result<Option<Location>> {
        Ok(cx.get(&location_key(&id)).await?)
    }
}

/// Lists the newest locations.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct List;

impl Handle<List> for Atlas {
    type Reply = Vec<Location>;
    async fn handle(&mut self, cx: &mut Context, _: List) -> Result<Vec<Location>> {
        let rows = cx.list("location/").await?;
        let locations = rows.iter().map(|(_, row)| serde_json::from_slice(row));
        let mut locations: Vec<Location> = locations.collect::<Result<_, _>>()?;
        locations.sort_by_key(|location| std::cmp::Reverse(location.created_at));
        locations.truncate(SHOWN);
        Ok(locations)
    }
}

fn location_key(id: &str) -> String {
    format!("location/{id}")
}
