//! Commands that are the same one, those that are refused, and the files of the page.

use anyhow::{Result, ensure};
use axum::http::Method;
use serde_json::{Value, json};

use super::Check;
use super::client::{Client, JSON};

pub(crate) fn checks(client: &Client) -> Vec<Check<'_>> {
    vec![
        ("4 the same command again is that one: 202", Box::pin(repeats(client))),
        ("4 another command under its ID is 409, and names the field", Box::pin(conflicts(client))),
        ("4 a key is one command: 202, and 422 with another body", Box::pin(has_a_key(client))),
        ("4 a name that another has is 409 at the field", Box::pin(name_is_taken(client))),
        ("4 of two that ask for one name at once, one gets it", Box::pin(one_of_two(client))),
        ("4 what cannot be is refused before it is stored: 400, 413, 415, 422", Box::pin(refuses(client))),
        ("4 an ID may have anything in it", Box::pin(takes_any_id(client))),
        ("page: nothing is fetched from elsewhere", Box::pin(is_complete(client))),
        ("page: the interface is described", Box::pin(is_described(client))),
    ]
}

async fn repeats(client: &Client) -> Result<()> {
    let input = json!({ "name": "Repeated" });
    let first = client.create("repeated", &input).await?.with(202)?;
    let again = client.create("repeated", &input).await?.with(202)?;
    ensure!(first.header("location") == again.header("location"), "{again:?}");
    client.end_of("repeated").await?;
    client.create("repeated", &input).await?.with(202).map(drop)
}

async fn conflicts(client: &Client) -> Result<()> {
    client.create("contested", &json!({ "name": "Contested", "description": "one" })).await?.with(202)?;
    let other = json!({ "name": "Contested", "description": "another" });
    client.create("contested", &other).await?.problem(409, Some("description")).map(drop)
}

async fn has_a_key(client: &Client) -> Result<()> {
    let post = |name: &str| {
        let body = Some((JSON, json!({ "name": name }).to_string()));
        async move { client.ask(Method::POST, "/flows/location", &[("idempotency-key", "\"k-1\"")], body).await }
    };
    let first = post("Keyed").await?.with(202)?;
    ensure!(first.header("location") == "/flows/location/k-1", "{first:?}");
    post("Keyed").await?.with(202)?;
    post("Keyed otherwise").await?.problem(422, Some("name")).map(drop)
}

async fn name_is_taken(client: &Client) -> Result<()> {
    client.create("holder", &json!({ "name": "Held" })).await?.with(202)?;
    client.end_of("holder").await?;
    let answer = client.create("seeker", &json!({ "name": " HELD " })).await?.problem(409, Some("name"))?;
    ensure!(answer.json()["detail"].as_str().is_some_and(|why| why.contains("has this name")), "{answer:?}");
    // Nothing of it was stored.
    client.get("/flows/location/seeker").await?.problem(404, None).map(drop)
}

async fn one_of_two(client: &Client) -> Result<()> {
    for round in 0..5 {
        let input = json!({ "name": format!("Wanted {round}") });
        let ids = [format!("left-{round}"), format!("right-{round}")];
        let (left, right) = tokio::join!(client.create(&ids[0], &input), client.create(&ids[1], &input));
        let mut made = 0;
        for (id, answer) in ids.iter().zip([left?, right?]) {
            match answer.status {
                202 => made += usize::from(client.end_of(id).await?["status"] == "succeeded"),
                _ => drop(answer.problem(409, Some("name"))?),
            }
        }
        ensure!(made == 1, "{made} got it");
    }
    Ok(())
}

async fn refuses(client: &Client) -> Result<()> {
    let put = |kind: &'static str, text: String| async move {
        client.ask(Method::PUT, "/flows/location/never", &[], Some((kind, text))).await
    };
    put(JSON, "{".to_owned()).await?.problem(400, None)?;
    put("text/plain", json!({ "name": "Never" }).to_string()).await?.problem(415, None)?;
    for (input, field) in [
        (json!({ "name": "" }), "name"),
        (json!({ "name": "Never", "description": "x".repeat(281) }), "description"),
        (json!({ "name": "Never", "slow": 601 }), "slow"),
        (json!({ "name": "Never", "slow": -1 }), "slow"),
        (json!({ "name": "Never", "fail": 2 }), "fail"),
        (json!({ "name": 7 }), "name"),
    ] {
        put(JSON, input.to_string()).await?.problem(422, Some(field))?;
    }
    // The server's own limit, before anything looks at it.
    let large = json!({ "name": "Never", "description": "x".repeat(20_000) });
    put(JSON, large.to_string()).await?.with(413)?;
    client.ask(Method::PUT, "/flows/nothing/never", &[], Some((JSON, "1".to_owned()))).await?.problem(404, None)?;
    client.get("/flows/location/never").await?.problem(404, None).map(drop)
}

async fn takes_any_id(client: &Client) -> Result<()> {
    let id = "a%2Fb%20%C3%BC%3F";
    client.create(id, &json!({ "name": "Any ID" })).await?.with(202)?;
    let status = client.end_of(id).await?;
    ensure!(status["resource"] == format!("/locations/{id}") && status["id"] == "a/b ü?", "{status}");
    client.get(&format!("/locations/{id}")).await?.with(200).map(drop)
}

async fn is_complete(client: &Client) -> Result<()> {
    for path in [
        "/",
        "/style.css",
        "/page.js",
        "/icon.svg",
        "/pin.svg",
        "/contours.svg",
        "/locations/nowhere",
        "/commands/nothing",
    ] {
        let answer = client.ask(Method::GET, path, &[("accept", "text/html")], None).await?;
        ensure!(answer.header("content-security-policy") == "default-src 'self'", "{path}: {answer:?}");
        let text = answer.text.replace("http://www.w3.org/2000/svg", "");
        for elsewhere in ["http://", "https://", "url(//", "@import", " style=", "<style>", "onclick="] {
            // A picture may say how it is drawn: no page of a browser is made of it.
            let is_drawn = elsewhere == "<style>" && path.ends_with(".svg");
            ensure!(is_drawn || !text.contains(elsewhere), "{path} has {elsewhere}");
        }
    }
    Ok(())
}

async fn is_described(client: &Client) -> Result<()> {
    let document: Value = client.get("/flows/openapi.json").await?.with(200)?.json();
    for path in ["/{name}", "/{name}/{id}", "/{name}/{id}/events", "/events"] {
        ensure!(document["paths"][path].is_object(), "it does not have {path}");
    }
    Ok(())
}
