//! Pages of HTML for people: the files of `page`, filled. Everything works without JavaScript; `page.js` adds what comes by itself.

use axum::Router;
use axum::http::header;
use axum::response::Html;
use axum::routing::get;

use crate::location::Location;
use crate::web::segment;

/// The reasons for which a form is shown once more, beside those of a field.
pub(crate) const NOT_STORED: &str = "It could not be stored. Send it again in a moment: it counts once.";
pub(crate) const SENT_BEFORE: &str =
    "This form was sent before, with something else in it. Send it again to ask for another location.";
pub(crate) const CANCELLED: &str = "It was cancelled.";

/// The files that pages ask for.
pub(crate) fn files<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let file = |kind: &'static str, content: &'static str| {
        // Asked for each time, so that a page and its script are of one version.
        get(move || async move { ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], content) })
    };
    Router::new()
        .route("/style.css", file("text/css; charset=utf-8", include_str!("page/style.css")))
        .route("/page.js", file("text/javascript; charset=utf-8", include_str!("page/page.js")))
        .route("/icon.svg", file("image/svg+xml", include_str!("page/icon.svg")))
        .route("/pin.svg", file("image/svg+xml", include_str!("page/pin.svg")))
        .route("/contours.svg", file("image/svg+xml", include_str!("page/contours.svg")))
}

/// The form with what is in it, and with what is wrong with that.
#[derive(Debug, Default)]
pub(crate) struct Form {
    /// The ID of the command that it sends.
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) slow: String,
    pub(crate) fail: String,
    pub(crate) failed: String,
    /// A field, and what is wrong there.
    pub(crate) wrong: Option<(String, String)>,
}

impl Form {
    pub(crate) fn new(id: String) -> Form {
        Form { id, ..Form::default() }
    }

    /// The form, with the reason why there is no location of it.
    pub(crate) fn failed(self, why: &str) -> Form {
        Form { failed: why.to_owned(), ..self }
    }

    /// The form, with what is wrong at a field.
    pub(crate) fn wrong(self, field: &str, why: &str) -> Form {
        Form { wrong: Some((field.to_owned(), why.to_owned())), ..self }
    }
}

/// The page with the form, and with all that exists.
pub(crate) fn index(form: &Form, locations: &[Location]) -> Html<String> {
    let mut rows = String::new();
    for location in locations {
        rows += &fill(
            include_str!("page/row.html").trim_end(),
            &[
                ("id", &escaped(&location.id)),
                ("url", &url(location)),
                ("name", &escaped(&location.name)),
                ("plot", &escaped(&location.plot)),
                ("description", &escaped(&location.description)),
            ],
        );
    }
    let wrong_at = |field: &str| form.wrong.as_ref().filter(|(at, _)| at == field).map_or("", |(_, why)| why);
    let invalid = |field: &str| if wrong_at(field).is_empty() { "" } else { " aria-invalid=\"true\" autofocus" };
    let failed = match &*form.failed {
        "" => String::new(),
        why => format!("<strong>“{}” was not created.</strong> {}", escaped(form.name.trim()), escaped(why)),
    };
    let hidden = |is_hidden: bool| if is_hidden { " hidden" } else { "" };
    let main = fill(
        include_str!("page/index.html"),
        &[
            ("id", &escaped(&form.id)),
            ("failed", &failed),
            ("failed-hidden", hidden(failed.is_empty())),
            ("name", &escaped(&form.name)),
            ("name-wrong", &escaped(wrong_at("name"))),
            ("name-invalid", invalid("name")),
            ("description", &escaped(&form.description)),
            ("description-wrong", &escaped(wrong_at("description"))),
            ("description-invalid", invalid("description")),
            ("slow", &escaped(if form.slow.is_empty() { "0" } else { &form.slow })),
            ("slow-wrong", &escaped(wrong_at("slow"))),
            ("slow-invalid", invalid("slow")),
            ("fail", if form.fail == "1" { " checked" } else { "" }),
            ("none-hidden", hidden(!rows.is_empty())),
            ("locations", &rows),
        ],
    );
    page("Locations", &main)
}

/// The page of a location.
pub(crate) fn location(location: &Location) -> Html<String> {
    let main = fill(
        include_str!("page/location.html"),
        &[
            ("id", &escaped(&location.id)),
            ("name", &escaped(&location.name)),
            ("plot", &escaped(&location.plot)),
            ("description", &escaped(&location.description)),
            ("at", &location.created_at.as_millis().to_string()),
        ],
    );
    page(&location.name, &main)
}

/// The page of a command that is not over.
pub(crate) fn command(name: &str, progress: &str) -> Html<String> {
    let name = if name.trim().is_empty() { "a location" } else { name };
    let main = fill(
        include_str!("page/command.html"),
        &[("name", &escaped(name)), ("progress", &escaped(&sentence(progress)))],
    );
    page(&format!("Creating {name}"), &main)
}

pub(crate) fn no_location() -> Html<String> {
    message("There is no such location", "It does not exist, or not yet.")
}

pub(crate) fn no_command() -> Html<String> {
    message("Nothing is known of this", "Nobody has asked for a location here, or that was long ago.")
}

fn message(heading: &str, text: &str) -> Html<String> {
    page(heading, &fill(include_str!("page/message.html"), &[("heading", heading), ("text", text)]))
}

fn page(title: &str, main: &str) -> Html<String> {
    let title = format!("{} – Atlas", escaped(title));
    Html(fill(include_str!("page/layout.html"), &[("title", &title), ("main", main)]))
}

/// The path of a location's page.
fn url(location: &Location) -> String {
    format!("/locations/{}", segment(&location.id))
}

/// A flow's word of its progress, as a sentence.
fn sentence(progress: &str) -> String {
    let mut chars = progress.chars();
    chars.next().map_or_else(|| "Accepted.".to_owned(), |first| format!("{}{}.", first.to_uppercase(), chars.as_str()))
}

/// A text as it may stand in an element or in the value of an attribute.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}

/// A template with each `{{name}}` in it replaced, once: whatever looks so in a value stays as it is.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut parts = template.split("{{");
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once("}}").unwrap_or(("", part));
        filled += values.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value);
        filled += rest;
    }
    filled
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn lisbon(name: &str) -> Location {
        let (id, description, plot) = ("a/b?".to_owned(), String::new(), "A1".to_owned());
        Location { id, name: name.to_owned(), description, plot, created_at: stable_interfaces::Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn what_somebody_has_written_is_text_wherever_it_stands() {
        let evil = r#"<script>'"{{id}}&"#;
        let form = Form {
            name: evil.to_owned(),
            description: evil.to_owned(),
            slow: evil.to_owned(),
            ..Form::new(evil.to_owned())
        };
        let form = form.failed(evil).wrong("name", evil);
        for page in [index(&form, &[lisbon(evil)]), location(&lisbon(evil)), command(evil, evil)] {
            assert!(!page.0.contains("<script>") && !page.0.contains(evil), "{}", page.0);
            assert!(page.0.contains("&lt;script&gt;&#39;&quot;{{id}}&amp;"), "{}", page.0);
        }
        assert!(index(&Form::default(), &[lisbon("x")]).0.contains("href=\"/locations/a%2Fb%3F\""));
    }

    #[test]
    fn a_field_that_is_wrong_says_so_and_keeps_what_is_in_it() {
        let form = Form { name: "Lisbon".to_owned(), ..Form::default() }.wrong("name", "It is taken.");
        let page = index(&form, &[]).0;
        let field = page.lines().find(|line| line.contains("id=\"name\"")).unwrap_or_default();
        assert!(field.contains("value=\"Lisbon\"") && field.contains("aria-invalid=\"true\""), "{field}");
        assert!(page.contains("id=\"name-wrong\">It is taken.<"), "{page}");
        assert_eq!(page.matches("aria-invalid=\"true\"").count(), 1, "{page}");
    }

    #[test]
    fn every_place_in_the_templates_is_filled_by_somebody() {
        let known: BTreeSet<&str> =
            include_str!("pages.rs").split("(\"").filter_map(|part| part.split('"').next()).collect();
        for template in [
            include_str!("page/layout.html"),
            include_str!("page/index.html"),
            include_str!("page/row.html"),
            include_str!("page/location.html"),
            include_str!("page/command.html"),
            include_str!("page/message.html"),
        ] {
            for place in template.split("{{").skip(1).filter_map(|part| part.split("}}").next()) {
                assert!(known.contains(place), "nobody fills {place}");
            }
        }
    }
}
