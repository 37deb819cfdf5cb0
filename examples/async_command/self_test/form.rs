//! A browser without JavaScript: it sends the form, goes where it is sent, and looks again when it is told to.

use anyhow::{Context as _, Result, ensure};
use axum::http::Method;
use serde_json::json;

use super::Check;
use super::client::{Answer, Client, FORM};

pub(crate) fn checks(client: &Client) -> Vec<Check<'_>> {
    vec![
        (
            "form: 303 to a page that looks again by itself, and from there to the location",
            Box::pin(is_followed(client)),
        ),
        ("form: sent twice, it is one command", Box::pin(is_replayed(client))),
        ("form: one that failed says why, and is filled", Box::pin(says_why(client))),
        ("form: a name that is taken is said at the field: 409", Box::pin(name_is_taken(client))),
        ("form: what cannot be is said at the field: 422", Box::pin(is_refused(client))),
        ("form: one of another site is refused", Box::pin(is_foreign(client))),
    ]
}

async fn send(client: &Client, form: &str) -> Result<Answer> {
    client.ask(Method::POST, "/locations", &[("accept", "text/html")], Some((FORM, form.to_owned()))).await
}

async fn is_followed(client: &Client) -> Result<()> {
    // With the ID that the page has given out.
    let page = client.get("/").await?.with(200)?;
    let id = page.text.split("name=\"id\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
    let id = id.context("an ID in the form")?;
    let sent = send(client, &format!("id={id}&name=By+form&description=a%0D%0Ab&slow=1")).await?.with(303)?;
    let status = sent.header("location");
    ensure!(status.starts_with(&format!("/commands/{id}?name=By%20form")), "{sent:?}");
    let looked = client.get(status).await?.with(200)?;
    ensure!(looked.header("refresh").parse::<u32>().is_ok(), "{looked:?}");
    ensure!(looked.text.contains("Creating By form"), "{looked:?}");
    client.end_of(id).await?;
    let ended = client.get(status).await?.with(303)?;
    ensure!(ended.header("refresh").is_empty() && ended.header("location") == format!("/locations/{id}"), "{ended:?}");
    let location =
        client.ask(Method::GET, ended.header("location"), &[("accept", "text/html")], None).await?.with(200)?;
    ensure!(location.text.contains("<h1>By form</h1>") && location.text.contains("a\nb"), "{location:?}");
    Ok(())
}

async fn is_replayed(client: &Client) -> Result<()> {
    let form = "id=replayed&name=Replayed";
    let first = send(client, form).await?.with(303)?;
    let again = send(client, form).await?.with(303)?;
    ensure!(first.header("location") == again.header("location"), "{again:?}");
    client.end_of("replayed").await?;
    send(client, form).await?.with(303)?;
    // Gone back to, changed and sent again, it would be another one, and is asked for under a new ID.
    let changed = send(client, "id=replayed&name=Replayed&description=more").await?.with(409)?;
    ensure!(changed.text.contains("was sent before") && !changed.text.contains("value=\"replayed\""), "{changed:?}");
    ensure!(changed.text.contains("value=\"Replayed\"") && changed.text.contains(">more</textarea>"), "{changed:?}");
    Ok(())
}

async fn says_why(client: &Client) -> Result<()> {
    let sent = send(client, "id=formed-failing&name=Formed+failing&description=%3Cb%3E&fail=1").await?.with(303)?;
    client.end_of("formed-failing").await?;
    let page = client.get(sent.header("location")).await?.with(200)?;
    ensure!(page.header("refresh").is_empty(), "{page:?}");
    for part in ["no firm ground", "value=\"Formed failing\"", ">&lt;b&gt;</textarea>", "value=\"1\" checked"] {
        ensure!(page.text.contains(part), "no {part} in {}", page.text);
    }
    ensure!(!page.text.contains("value=\"formed-failing\""), "it is under the old ID: {}", page.text);
    Ok(())
}

async fn name_is_taken(client: &Client) -> Result<()> {
    client.create("form-holder", &json!({ "name": "Held by form" })).await?.with(202)?;
    client.end_of("form-holder").await?;
    let page = send(client, "id=form-seeker&name=held+by+form&description=mine").await?.with(409)?;
    let field = page.text.lines().find(|line| line.contains("id=\"name\"")).context("the field")?;
    ensure!(field.contains("value=\"held by form\"") && field.contains("aria-invalid"), "{field}");
    ensure!(page.text.contains("id=\"name-wrong\">Another location has this name."), "{page:?}");
    ensure!(page.text.contains(">mine</textarea>"), "{page:?}");
    Ok(())
}

async fn is_refused(client: &Client) -> Result<()> {
    for (form, field) in [
        ("id=form-never&name=+", "name"),
        ("id=form-never&name=Never&slow=soon", "slow"),
        ("id=form-never&name=Never&slow=-1", "slow"),
    ] {
        let page = send(client, form).await?.with(422)?;
        let wrong = page.text.split(&format!("id=\"{field}-wrong\">")).nth(1).context("the place for it")?;
        ensure!(!wrong.starts_with('<'), "{form}: nothing is said at {field}");
    }
    send(client, "name=Never").await?.with(400)?;
    client.get("/commands/form-never").await?.with(404).map(drop)
}

async fn is_foreign(client: &Client) -> Result<()> {
    let body = Some((FORM, "id=foreign&name=Foreign".to_owned()));
    let headers = [("sec-fetch-site", "cross-site")];
    client.ask(Method::POST, "/locations", &headers, body).await?.with(403)?;
    client.get("/flows/location/foreign").await?.with(404).map(drop)
}
