//! The doors: commands come in here, and their outcomes go out. The flows' own router is one of them, behind a check of the
//! application's; the others are what is read, the page, and a form for browsers without JavaScript.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path as InPath, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Json, Router};
use callback_flows::{Flows, FlowsError, State as FlowState};
use examples::http;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use stable_interfaces::RequestError;
use tokio::net::TcpListener;

use crate::location::{LOCATION, NAME_TAKEN, NewLocation, World, validate};
use crate::options;
use crate::pages::{self, Form};
use crate::store::Home;
use crate::world::{ATLAS, Holder, List, OFFICE, PlotOf, Show, key_of};

/// The time for which the ID of a command is kept when the command itself is not any more.
const KEEP_ID: Duration = Duration::from_secs(30 * 24 * 3_600);
/// The seconds after which a browser without JavaScript looks again.
const LOOK_AGAIN: HeaderValue = HeaderValue::from_static("2");

#[derive(Debug, Clone)]
struct App {
    flows: Flows,
    world: World,
}

/// Serves until `stop` completes. A command is kept for so long when it is over.
///
/// # Errors
/// One that names what could not be had, or [`Ended`](stable_interfaces::Ended) of a host that ended by itself: the process is to
/// be started anew.
pub(crate) async fn serve(listen: SocketAddr, home: &Home, keep: Duration, stop: impl Future) -> Result<()> {
    let tcp = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    let address = tcp.local_addr()?;
    let mut host = home.host(&address.to_string()).await?;
    let told = Arc::default();
    let world = World::register(&mut host, &told)?;
    let flows = world.clone().flows().retention(keep, KEEP_ID).register(&mut host)?;
    let flows = told.get_or_init(|| flows).clone();
    let host = host.start().await.context("cannot start the host")?;

    println!("listening on http://{address}/");
    print!("{}", options::to_try(address, home));
    let served = http::serve(tcp, routes(App { flows, world }), host.stopping());
    let ((), ended) = tokio::join!(served, host.run_until(stop));
    Ok(ended.map(drop)?)
}

fn routes(app: App) -> Router {
    let check = middleware::from_fn_with_state(app.clone(), name_is_free);
    Router::new()
        .route("/", get(index))
        .route("/locations", get(list).post(submit))
        .route("/locations/{id}", get(show))
        .route("/commands/{id}", get(follow))
        .route("/names/{name}", get(holder))
        .route("/plots/{id}", get(plot))
        .merge(pages::files())
        .with_state(app.clone())
        .nest("/flows", app.flows.router().layer(check))
        .layer(middleware::map_response(guarded))
}

/// Tells browsers to fetch nothing from elsewhere, and to run and show only what comes in files of this service.
async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'self'"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response
}

/// A layer of the application's own in front of the flows' router: refuses a `PUT` whose name another location has, at once. Two may ask
/// at once, and so the flow reserves the name all the same; this one only spares the client the wait.
async fn name_is_free(State(app): State<App>, request: Request, next: Next) -> Response {
    let id = request.uri().path().strip_prefix("/location/").filter(|_| request.method() == Method::PUT);
    let Some(id) = id.map(|id| percent_decode_str(id).decode_utf8_lossy().into_owned()) else {
        return next.run(request).await;
    };
    let (parts, body) = request.into_parts();
    // There is a limit on bodies already, and one that cannot be read is refused behind this layer.
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    if let Ok(new) = serde_json::from_slice::<NewLocation>(&body) {
        match app.is_taken(&new.name, &id).await {
            Ok(false) => {}
            Ok(true) => return name_taken().into_response(),
            Err(error) => return error.into_response(),
        }
    }
    next.run(Request::from_parts(parts, body.into())).await
}

impl App {
    /// Tells whether a location of another ID has this name, or is about to have it.
    async fn is_taken(&self, name: &str, id: &str) -> Result<bool, Problem> {
        if validate(&NewLocation { name: name.to_owned(), ..NewLocation::default() }).is_err() {
            return Ok(false);
        }
        let holder = self.world.names.request(&key_of(name), Holder).await?;
        Ok(holder.is_some_and(|holder| holder != id))
    }

    /// The page with this form. That the list cannot be had now is no reason to take the form away.
    async fn page(&self, form: &Form) -> Response {
        let locations = self.world.atlas.request(ATLAS, List).await.unwrap_or_default();
        uncached(pages::index(form, &locations))
    }
}

async fn index(State(app): State<App>) -> Response {
    // Each time with another ID for the form.
    app.page(&Form::new(new_id())).await
}

async fn list(State(app): State<App>) -> Result<Response, Problem> {
    Ok(uncached(Json(app.world.atlas.request(ATLAS, List).await?)))
}

/// The resource itself: 404 until it exists. That is all it can say: one that will never exist looks like one that is late.
async fn show(State(app): State<App>, InPath(id): InPath<String>, request: HeaderMap) -> Result<Response, Problem> {
    let location = app.world.atlas.request(ATLAS, Show(id)).await?;
    let mut response = match (location, wants_html(&request)) {
        (Some(location), true) => uncached(pages::location(&location)),
        (Some(location), false) => uncached(Json(location)),
        (None, true) => (StatusCode::NOT_FOUND, uncached(pages::no_location())).into_response(),
        (None, false) => return Err(not_found("There is no location of this ID, or not yet.")),
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_name(header::ACCEPT));
    Ok(response)
}

async fn holder(State(app): State<App>, InPath(name): InPath<String>) -> Result<Response, Problem> {
    let holder = match key_of(&name) {
        key if key.is_empty() => None,
        key => app.world.names.request(&key, Holder).await?,
    };
    let location = holder.ok_or_else(|| not_found("No location has this name."))?;
    Ok(uncached(Json(serde_json::json!({ "location": location }))))
}

async fn plot(State(app): State<App>, InPath(id): InPath<String>) -> Result<Response, Problem> {
    let plot = app.world.surveyor.request(OFFICE, PlotOf(id)).await?;
    let plot = plot.ok_or_else(|| not_found("The surveyor has given no plot to this location."))?;
    Ok(uncached(Json(serde_json::json!({ "plot": plot }))))
}

/// The fields of the form, as a browser sends them and as they are in the path of a status page.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default)]
struct Fields {
    id: String,
    name: String,
    description: String,
    slow: String,
    fail: String,
}

impl Fields {
    /// The input that they stand for; a number that is none is too large.
    fn input(&self) -> NewLocation {
        let number = |text: &str| if text.trim().is_empty() { 0 } else { text.trim().parse().unwrap_or(u64::MAX) };
        let (name, description) = (self.name.clone(), self.description.replace("\r\n", "\n"));
        NewLocation { name, description, slow: number(&self.slow), fail: number(&self.fail) }
    }

    /// The form with these fields in it, to be sent under another ID.
    fn form(&self) -> Form {
        let Fields { name, description, slow, fail, .. } = self.clone();
        Form { name, description, slow, fail, ..Form::new(new_id()) }
    }
}

/// The form, for browsers without JavaScript: the command's ID is in it, so that one that is sent twice is one command.
async fn submit(State(app): State<App>, request: HeaderMap, body: Bytes) -> Response {
    // Such a form could be another site's.
    let site = request.get("sec-fetch-site").map(HeaderValue::as_bytes);
    if site.is_some_and(|site| !matches!(site, b"same-origin" | b"none")) {
        return (StatusCode::FORBIDDEN, "This form is to be sent from its own page.\n").into_response();
    }
    let fields = match fields_of(&body) {
        Some(fields) if !fields.id.is_empty() => fields,
        _ => return (StatusCode::BAD_REQUEST, "This is not the form of the page.\n").into_response(),
    };
    let (status, form) = match app.accept(&fields).await {
        // With what was sent, for the form again should it fail.
        Ok(()) => return Redirect::to(&fields.status_page()).into_response(),
        Err(refused) => refused,
    };
    (status, app.page(&form).await).into_response()
}

impl App {
    /// Starts the command of a form; or the status and the form that say why not.
    async fn accept(&self, fields: &Fields) -> Result<(), (StatusCode, Form)> {
        let not_stored = || (StatusCode::SERVICE_UNAVAILABLE, fields.form().failed(pages::NOT_STORED));
        if self.is_taken(&fields.name, &fields.id).await.map_err(|_| not_stored())? {
            return Err((StatusCode::CONFLICT, fields.form().wrong("name", NAME_TAKEN)));
        }
        match self.flows.start(LOCATION, &fields.id, &fields.input()).await {
            Ok(_) => Ok(()),
            Err(FlowsError::Refused(refused)) => {
                let form = fields.form().wrong(refused.field(), refused.reason());
                Err((StatusCode::UNPROCESSABLE_ENTITY, form))
            }
            Err(FlowsError::Conflict) => Err((StatusCode::CONFLICT, fields.form().failed(pages::SENT_BEFORE))),
            Err(_) => Err(not_stored()),
        }
    }
}

impl Fields {
    fn status_page(&self) -> String {
        let Fields { id, name, description, slow, fail } = self;
        let fields = [("name", name), ("description", description), ("slow", slow), ("fail", fail)];
        let given = fields.iter().filter(|(_, value)| !value.is_empty());
        let query: Vec<_> = given.map(|(field, value)| format!("{field}={}", segment(value))).collect();
        format!("/commands/{}?{}", segment(id), query.join("&"))
    }
}

/// Reads the fields of a form, which are written as those of a query are.
fn fields_of(body: &[u8]) -> Option<Fields> {
    let uri: Uri = format!("/?{}", std::str::from_utf8(body).ok()?).parse().ok()?;
    Query::try_from_uri(&uri).ok().map(|Query(fields)| fields)
}

/// The status page: looks again by itself until the command is over, and then goes to the location or says why there is none.
async fn follow(
    State(app): State<App>,
    InPath(id): InPath<String>,
    query: Result<Query<Fields>, QueryRejection>,
) -> Result<Response, Problem> {
    let fields = query.map(|Query(fields)| fields).unwrap_or_default();
    let status = app.flows.get(LOCATION, &id).await?;
    let Some(status) = status.filter(|status| status.state != FlowState::Purged) else {
        return Ok((StatusCode::NOT_FOUND, uncached(pages::no_command())).into_response());
    };
    let failed = |reason: &str| {
        let form = fields.form();
        if reason == NAME_TAKEN { form.wrong("name", reason) } else { form.failed(reason) }
    };
    Ok(match &status.state {
        FlowState::Done => Redirect::to(status.resource.as_deref().unwrap_or_default()).into_response(),
        FlowState::Failed { error } => app.page(&failed(error)).await,
        FlowState::Cancelled => app.page(&failed(pages::CANCELLED)).await,
        _ => {
            let progress = status.progress.as_ref().and_then(|progress| progress.as_str()).unwrap_or_default();
            let page = uncached(pages::command(&fields.name, progress));
            ([(header::REFRESH, LOOK_AGAIN)], page).into_response()
        }
    })
}

/// A text as one segment of a path, or as a value in a query.
pub(crate) fn segment(text: &str) -> String {
    const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(text, ESCAPED).to_string()
}

fn new_id() -> String {
    format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}

fn wants_html(request: &HeaderMap) -> bool {
    request.get(header::ACCEPT).is_some_and(|accept| accept.as_bytes().windows(9).any(|part| part == b"text/html"))
}

fn uncached(page: impl IntoResponse) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], page).into_response()
}

/// A refusal of the application's own (RFC 9457), beside those of the flows' router.
#[derive(Debug, Serialize)]
struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'static str>,
    detail: String,
}

fn name_taken() -> Problem {
    let (title, detail) = ("The name is taken", NAME_TAKEN.to_owned());
    Problem { kind: "urn:example:name-taken", title, status: 409, field: Some("name"), detail }
}

fn not_found(detail: &str) -> Problem {
    Problem { kind: "about:blank", title: "Not Found", status: 404, field: None, detail: detail.to_owned() }
}

fn unavailable() -> Problem {
    let detail = "It could not be looked up. Try again in a moment.".to_owned();
    Problem { kind: "about:blank", title: "Service Unavailable", status: 503, field: None, detail }
}

impl<E> From<RequestError<E>> for Problem {
    fn from(_: RequestError<E>) -> Problem {
        unavailable()
    }
}

impl From<FlowsError> for Problem {
    fn from(error: FlowsError) -> Problem {
        // An ID that cannot be one is nobody's.
        if matches!(error, FlowsError::Invalid(_)) { not_found("There is no such command.") } else { unavailable() }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
