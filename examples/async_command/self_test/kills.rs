//! Slow commands over which the host is killed, and the end of a host that is asked to stop.

use anyhow::{Context as _, Result, ensure};
use examples::process::HostProcess;
use serde_json::{Value, json};

use super::Check;
use super::client::{Client, Event, Events, FORM};

/// The seconds that slow commands take: enough for two kills.
const SLOW: u64 = 10;
/// One that is made, one that fails, one that was asked for by the form, and one that was acknowledged right before a kill.
const MADE: &str = "slow-made";
const FAILS: &str = "slow-fails";
const FORMED: &str = "slow-formed";
const LAST_WORD: &str = "last-word";

/// Slow commands under way, and somebody who listens to the one that is made.
pub(crate) struct Slow {
    stream: Events,
    heard: Vec<Event>,
    plot: Value,
}

impl Slow {
    pub(crate) async fn begin(client: &Client) -> Result<Slow> {
        let fails = json!({ "name": "Slow and failing", "slow": SLOW, "fail": 1 });
        client.create(FAILS, &fails).await?.with(202)?;
        let form = format!("id={FORMED}&name=Slow+and+by+form&slow={SLOW}");
        client.ask(axum::http::Method::POST, "/locations", &[], Some((FORM, form))).await?.with(303)?;
        client.create(MADE, &json!({ "name": "Slow", "slow": SLOW })).await?.with(202)?;
        let mut slow = Slow {
            stream: client.listen(&format!("/flows/location/{MADE}/events"), None).await?,
            heard: Vec::new(),
            plot: Value::Null,
        };
        // It has a plot by then.
        while slow.heard.last().is_none_or(|event| event.data != "waiting for the surveyor") {
            slow.hear().await.context("the stream has ended")?;
        }
        slow.plot = client.get(&format!("/plots/{MADE}")).await?.with(200)?.json();
        Ok(slow)
    }

    /// Sees that none is over, so that a kill strikes in the middle of each.
    pub(crate) async fn sees_all_under_way(&self, client: &Client) -> Result<()> {
        for id in [MADE, FAILS, FORMED] {
            let status = client.get(&format!("/flows/location/{id}")).await?.with(200)?.json();
            ensure!(status["status"] == "running", "too late for a kill: {status}");
        }
        Ok(())
    }

    /// Has a command acknowledged; what follows is a kill.
    pub(crate) async fn has_one_acknowledged(&self, client: &Client) -> Result<()> {
        client.create(LAST_WORD, &json!({ "name": "Last word" })).await?.with(202).map(drop)
    }

    /// Comes back after a kill, with the number of the last event.
    pub(crate) async fn goes_on_listening(&mut self, client: &Client) -> Result<()> {
        let last = self.heard.last().and_then(|event| event.id);
        self.stream = client.listen(&format!("/flows/location/{MADE}/events"), last).await?;
        Ok(())
    }

    async fn hear(&mut self) -> Option<()> {
        self.heard.push(self.stream.next().await?);
        Some(())
    }

    pub(crate) fn checks<'a>(&'a mut self, client: &'a Client) -> Vec<Check<'a>> {
        let Slow { stream, heard, plot } = self;
        vec![
            ("kill: a stream goes on without a gap or a repeat", Box::pin(is_whole(stream, heard))),
            ("kill: a slow command goes on, and makes its location once", Box::pin(is_made_once(client, plot))),
            ("kill: a slow command that fails undoes what was done before", Box::pin(is_undone(client))),
            ("kill: a status page ends at the location", Box::pin(page_ends(client))),
            ("kill: a command acknowledged right before is not lost", Box::pin(is_not_lost(client))),
        ]
    }
}

async fn is_whole(stream: &mut Events, heard: &mut Vec<Event>) -> Result<()> {
    while let Some(event) = stream.next().await {
        heard.push(event);
    }
    let numbers: Vec<_> = heard.iter().filter_map(|event| event.id).collect();
    ensure!(numbers == (1..=heard.len() as u64).collect::<Vec<_>>(), "{numbers:?}");
    let said: Vec<_> = heard.iter().map(|event| &*event.name).filter(|name| *name != "progress").collect();
    ensure!(said == ["resource", "location-created", "succeeded"], "{said:?}");
    Ok(())
}

async fn is_made_once(client: &Client, plot: &Value) -> Result<()> {
    let status = client.end_of(MADE).await?;
    ensure!(status["status"] == "succeeded", "{status}");
    ensure!(status["result"]["plot"] == plot["plot"] && plot["plot"].is_string(), "another plot than {plot}: {status}");
    let all = client.get("/locations").await?.with(200)?.json();
    let of_it = all.as_array().context("a list")?.iter().filter(|location| location["name"] == "Slow").count();
    ensure!(of_it == 1, "it is there {of_it} times");
    Ok(())
}

async fn is_undone(client: &Client) -> Result<()> {
    let status = client.end_of(FAILS).await?;
    ensure!(status["status"] == "failed", "{status}");
    for gone in ["/locations/slow-fails", "/plots/slow-fails", "/names/Slow%20and%20failing"] {
        client.get(gone).await?.with(404).context(gone)?;
    }
    Ok(())
}

async fn page_ends(client: &Client) -> Result<()> {
    client.end_of(FORMED).await?;
    let page = client.get(&format!("/commands/{FORMED}")).await?.with(303)?;
    ensure!(page.header("location") == format!("/locations/{FORMED}"), "{page:?}");
    client.get(page.header("location")).await?.with(200).map(drop)
}

async fn is_not_lost(client: &Client) -> Result<()> {
    let status = client.end_of(LAST_WORD).await?;
    ensure!(status["status"] == "succeeded", "{status}");
    client.get(&format!("/locations/{LAST_WORD}")).await?.with(200).map(drop)
}

pub(crate) fn ends_streams<'a>(client: &'a Client, host: &'a mut HostProcess) -> Check<'a> {
    let check = async move {
        client.create("never-done", &json!({ "name": "Never done", "slow": 600 })).await?.with(202)?;
        let mut stream = client.listen("/flows/location/never-done/events", None).await?;
        let ended = async { while stream.next().await.is_some() {} };
        let (stopped, ()) = tokio::join!(host.stop(), ended);
        let stopped = stopped?;
        ensure!(stopped.success(), "it ended with {stopped}");
        Ok(())
    };
    ("stop: a host that is asked to stop ends its streams, and itself", Box::pin(check))
}
