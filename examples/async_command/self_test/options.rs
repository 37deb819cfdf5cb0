//! The ways of the decision record, each as a client would go it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use axum::http::Method;
use serde_json::json;
use tokio::time::sleep;

use super::Check;
use super::client::{Client, Event};

pub(crate) fn checks(client: &Client) -> Vec<Check<'_>> {
    vec![
        ("1.1 a location is 404 until it exists, and then 200", Box::pin(polls_the_resource(client))),
        ("1.1 one that fails is never told from one that is late", Box::pin(polls_in_vain(client))),
        ("1.2 a command is accepted: 202, where its status is, when to look", Box::pin(is_accepted(client))),
        ("1.2 the status of a command says what it has made", Box::pin(status_of_success(client))),
        ("1.2 the status of a command that failed is 200 with the reason", Box::pin(status_of_failure(client))),
        ("1.2 a status that has not changed is 304", Box::pin(is_unchanged(client))),
        ("1.2 a request may wait for the end", Box::pin(waits(client))),
        ("1.2 whoever follows is sent to the location: 303", Box::pin(is_sent_on(client))),
        ("2.1 the ends of all commands are heard", Box::pin(hears_all_ends(client))),
        ("2.2 location-created is heard, and then the end", Box::pin(hears_creation(client))),
        ("2.2 creating-location-failed is heard with its reason, and then the end", Box::pin(hears_failure(client))),
        ("2.2 a stream goes on after any event, and is 204 after the last", Box::pin(resumes(client))),
        ("2.3 only failures are heard", Box::pin(hears_failures_alone(client))),
        ("saga: a failure undoes what was done", Box::pin(undoes_a_failure(client))),
        ("saga: a cancelled command undoes what was done: 202, and then 409", Box::pin(undoes_a_cancellation(client))),
    ]
}

async fn polls_the_resource(client: &Client) -> Result<()> {
    client.get("/locations/polled").await?.problem(404, None)?;
    client.create("polled", &json!({ "name": "Polled", "description": "<b>" })).await?.with(202)?;
    let location = loop {
        let answer = client.get("/locations/polled").await?;
        if answer.status == 200 {
            break answer.json();
        }
        answer.problem(404, None)?;
        sleep(Duration::from_millis(20)).await;
    };
    ensure!(location["name"] == "Polled" && location["description"] == "<b>", "{location}");
    Ok(())
}

async fn polls_in_vain(client: &Client) -> Result<()> {
    client.create("in-vain", &json!({ "name": "In vain", "fail": 1 })).await?.with(202)?;
    client.end_of("in-vain").await?;
    client.get("/locations/in-vain").await?.problem(404, None).map(drop)
}

async fn is_accepted(client: &Client) -> Result<()> {
    let answer = client.create("accepted", &json!({ "name": "Accepted" })).await?.with(202)?;
    ensure!(answer.header("location") == "/flows/location/accepted", "{answer:?}");
    ensure!(answer.header("retry-after").parse::<u64>().is_ok(), "{answer:?}");
    let status = client.get(answer.header("location")).await?.with(200)?.json();
    ensure!(status["id"] == "accepted" && status["name"] == "location", "{status}");
    Ok(())
}

async fn status_of_success(client: &Client) -> Result<()> {
    client.create("made", &json!({ "name": "Made" })).await?.with(202)?;
    let status = client.end_of("made").await?;
    ensure!(status["status"] == "succeeded" && status["resource"] == "/locations/made", "{status}");
    ensure!(status["result"]["name"] == "Made", "{status}");
    Ok(())
}

async fn status_of_failure(client: &Client) -> Result<()> {
    client.create("failed", &json!({ "name": "Failed", "fail": 1 })).await?.with(202)?;
    let status = client.end_of("failed").await?;
    ensure!(status["status"] == "failed" && status["problem"]["detail"].is_string(), "{status}");
    ensure!(status["resource"].is_null(), "{status}");
    Ok(())
}

async fn is_unchanged(client: &Client) -> Result<()> {
    client.create("unchanged", &json!({ "name": "Unchanged" })).await?.with(202)?;
    client.end_of("unchanged").await?;
    let first = client.get("/flows/location/unchanged").await?.with(200)?;
    let known = [("if-none-match", first.header("etag"))];
    client.ask(Method::GET, "/flows/location/unchanged", &known, None).await?.with(304).map(drop)
}

async fn waits(client: &Client) -> Result<()> {
    let (input, wait) = (json!({ "name": "Waited for", "slow": 1 }).to_string(), [("prefer", "wait=30")]);
    let body = Some((super::client::JSON, input));
    let answer = client.ask(Method::PUT, "/flows/location/waited", &wait, body).await?.with(200)?;
    ensure!(answer.header("preference-applied") == "wait=30", "{answer:?}");
    ensure!(answer.json()["status"] == "succeeded", "{answer:?}");
    Ok(())
}

async fn is_sent_on(client: &Client) -> Result<()> {
    client.create("followed", &json!({ "name": "Followed" })).await?.with(202)?;
    client.end_of("followed").await?;
    let answer = client.get("/flows/location/followed?follow=1").await?.with(303)?;
    client.get(answer.header("location")).await?.with(200).map(drop)
}

async fn hears_all_ends(client: &Client) -> Result<()> {
    let mut all = client.listen("/flows/events?only=succeeded,failed&name=location", None).await?;
    client.create("heard-made", &json!({ "name": "Heard" })).await?.with(202)?;
    client.create("heard-failed", &json!({ "name": "Heard failing", "fail": 1 })).await?.with(202)?;
    let mut awaited = vec![("succeeded", "heard-made"), ("failed", "heard-failed")];
    while !awaited.is_empty() {
        let event = all.next().await.context("the stream has ended")?;
        awaited.retain(|(name, id)| *name != event.name || event.data["id"] != *id);
    }
    Ok(())
}

/// All that a command says, up to its end.
async fn said(client: &Client, id: &str) -> Result<Vec<Event>> {
    let mut stream = client.listen(&format!("/flows/location/{id}/events"), None).await?;
    let mut said = Vec::new();
    while let Some(event) = stream.next().await {
        said.push(event);
    }
    Ok(said)
}

async fn hears_creation(client: &Client) -> Result<()> {
    client.create("created", &json!({ "name": "Created" })).await?.with(202)?;
    let mut stream = client.listen("/flows/location/created/events", None).await?;
    let events = stream.until("location-created").await?;
    let created = events.last().context("at least one")?;
    ensure!(created.data["id"] == "created" && created.data["name"] == "Created", "{created:?}");
    // It is there for whoever has heard of it.
    client.get("/locations/created").await?.with(200)?;
    let end = stream.next().await.context("an end")?;
    ensure!(end.name == "succeeded", "{end:?}");
    Ok(())
}

async fn hears_failure(client: &Client) -> Result<()> {
    client.create("refused", &json!({ "name": "Refused", "fail": 1 })).await?.with(202)?;
    let events = said(client, "refused").await?;
    let ends: Vec<_> = events.iter().filter(|event| event.name != "progress").collect();
    let [failure, end] = ends[..] else { anyhow::bail!("{events:?}") };
    ensure!(failure.name == "creating-location-failed" && failure.data["reason"].is_string(), "{failure:?}");
    ensure!(end.name == "failed", "{end:?}");
    Ok(())
}

async fn resumes(client: &Client) -> Result<()> {
    client.create("resumed", &json!({ "name": "Resumed" })).await?.with(202)?;
    let all = said(client, "resumed").await?;
    ensure!(all.len() > 4, "{all:?}");
    for (at, event) in all.iter().enumerate() {
        let path = "/flows/location/resumed/events";
        let Some(rest) = all.get(at + 1..).filter(|rest| !rest.is_empty()) else {
            let last = event.id.context("a number")?.to_string();
            client.ask(Method::GET, path, &[("last-event-id", &last)], None).await?.with(204)?;
            continue;
        };
        let mut stream = client.listen(path, event.id).await?;
        for expected in rest {
            let event = stream.next().await.context("the stream has ended")?;
            ensure!(event == *expected, "{event:?} in place of {expected:?}");
        }
    }
    Ok(())
}

async fn hears_failures_alone(client: &Client) -> Result<()> {
    let mut failures = client.listen("/flows/events?only=failed,blocked", None).await?;
    client.create("quiet", &json!({ "name": "Quiet" })).await?.with(202)?;
    client.end_of("quiet").await?;
    client.create("loud", &json!({ "name": "Loud", "fail": 1 })).await?.with(202)?;
    loop {
        let event = failures.next().await.context("the stream has ended")?;
        ensure!(event.name == "failed" && event.data["id"] != "quiet", "{event:?}");
        if event.data["id"] == "loud" {
            return Ok(());
        }
    }
}

async fn undoes_a_failure(client: &Client) -> Result<()> {
    client.create("undone", &json!({ "name": "Undone", "slow": 1, "fail": 1 })).await?.with(202)?;
    let mut stream = client.listen("/flows/location/undone/events", None).await?;
    while stream.next().await.context("the stream has ended")?.data != "waiting for the surveyor" {}
    client.get("/names/Undone").await?.with(200)?;
    client.get("/plots/undone").await?.with(200)?;
    client.end_of("undone").await?;
    client.get("/names/Undone").await?.problem(404, None)?;
    client.get("/plots/undone").await?.problem(404, None)?;
    // And so another may have the name.
    client.create("done-instead", &json!({ "name": "Undone" })).await?.with(202)?;
    let status = client.end_of("done-instead").await?;
    ensure!(status["status"] == "succeeded", "{status}");
    Ok(())
}

async fn undoes_a_cancellation(client: &Client) -> Result<()> {
    client.create("cancelled", &json!({ "name": "Cancelled", "slow": 600 })).await?.with(202)?;
    let mut stream = client.listen("/flows/location/cancelled/events", None).await?;
    while stream.next().await.context("the stream has ended")?.data != "waiting for the surveyor" {}
    let cancel = || client.ask(Method::DELETE, "/flows/location/cancelled", &[], None);
    cancel().await?.with(202)?;
    let status = client.end_of("cancelled").await?;
    ensure!(status["status"] == "cancelled", "{status}");
    client.get("/names/Cancelled").await?.with(404)?;
    client.get("/plots/cancelled").await?.with(404)?;
    cancel().await?.problem(409, None).map(drop)
}

/// To be seen on a host that keeps what is over for a second.
pub(crate) fn is_forgotten(client: &Client) -> Check<'_> {
    let check = async {
        client.create("forgotten", &json!({ "name": "Forgotten" })).await?.with(202)?;
        let answer = loop {
            let answer = client.get("/flows/location/forgotten").await?;
            if answer.status != 200 {
                break answer;
            }
            sleep(Duration::from_millis(50)).await;
        };
        answer.problem(410, None)?;
        client.create("forgotten", &json!({ "name": "Forgotten" })).await?.problem(410, None)?;
        // What it has made is none of its outcome.
        client.get("/locations/forgotten").await?.with(200).map(drop)
    };
    ("4 a command over for so long that it is forgotten is 410", Box::pin(check))
}
