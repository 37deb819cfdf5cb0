//! Tests of the fake over HTTP: what it does to a connection.

use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::fake::books::Dealing;
use crate::plan::Hook;

/// A fake that serves, and a client for it.
async fn fake(seed: u64) -> (Stripe, String, reqwest::Client) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/v1/", listener.local_addr().expect("it is bound"));
    let mut books = Books::default();
    books.dealings.insert("17".to_owned(), Dealing::new(Hook::Never, "no".to_owned()));
    let http = examples::client(Duration::from_secs(20));
    let doors = Doors::new([reqwest::Url::parse("http://127.0.0.1:1/").expect("a URL")]);
    let stripe = Stripe::new(books, http.clone(), doors, "sk_test_1", "whsec_1", seed);
    tokio::spawn(examples::http::serve(listener, stripe.clone().routes(), std::future::pending()));
    (stripe, url, http)
}

/// A seed with which the customer of order 17 meets these weathers, one after the other.
fn seed_of(weathers: &[Weather]) -> u64 {
    let meets =
        |seed: &u64| (0..).zip(weathers).all(|(at, weather)| Weather::of(*seed, "customer of 17", at) == *weather);
    (0..).find(meets).expect("all weathers occur")
}

fn post(http: &reqwest::Client, url: &str, key: &str, body: &str) -> reqwest::RequestBuilder {
    let form = "application/x-www-form-urlencoded";
    let request = http.post(format!("{url}customers")).basic_auth("sk_test_1", Some(""));
    request.header("content-type", form).header("idempotency-key", key).body(body.to_owned())
}

const ANN: &str = "name=Ann&metadata[order]=17";

#[tokio::test]
async fn a_client_without_the_key_is_refused_and_one_with_it_is_answered_alike_each_time() {
    let (stripe, url, http) = fake(seed_of(&[Weather::Fine, Weather::Fine])).await;
    let refused = http.post(format!("{url}customers")).basic_auth("sk_test_2", Some("")).send().await;
    assert_eq!(refused.map(|answer| answer.status()).ok(), Some(StatusCode::UNAUTHORIZED));
    let mut answers = Vec::new();
    for (key, body) in [("k", ANN), ("k", ANN), ("k", "name=Eve&metadata[order]=17")] {
        let answer = post(&http, &url, key, body).send().await.expect("it answers");
        let is_repeated = answer.headers().contains_key("idempotent-replayed");
        answers.push((answer.status().as_u16(), is_repeated, answer.json::<Value>().await.expect("JSON")));
    }
    assert_eq!((answers[0].0, answers[0].1), (200, false));
    assert_eq!((answers[1].0, answers[1].1, &answers[1].2), (200, true, &answers[0].2));
    assert_eq!((answers[2].0, &answers[2].2["error"]["type"]), (400, &json!("idempotency_error")));
    assert_eq!(stripe.books().of("customer").count(), 1);
}

#[tokio::test]
async fn a_connection_that_is_dropped_has_done_its_work() {
    let (stripe, url, http) = fake(seed_of(&[Weather::Dropped])).await;
    let dropped = post(&http, &url, "k", ANN).send().await;
    let body = match dropped {
        Ok(answer) => answer.bytes().await.map(drop),
        Err(error) => Err(error),
    };
    assert!(body.is_err(), "there is no whole answer");
    assert_eq!(stripe.books().of("customer").count(), 1);
}

#[tokio::test]
async fn an_error_500_stays_one_under_its_key_whether_the_work_was_done_or_not() {
    for (weather, done) in [(Weather::Broken, 0), (Weather::DoneAndBroken, 1)] {
        let (stripe, url, http) = fake(seed_of(&[weather])).await;
        for _ in 0..3 {
            let Ok(answer) = post(&http, &url, "k", ANN).send().await else { continue };
            let may_be_refused = answer.status() == StatusCode::TOO_MANY_REQUESTS;
            assert!(may_be_refused || answer.status() == StatusCode::INTERNAL_SERVER_ERROR, "{answer:?}");
        }
        assert_eq!(stripe.books().of("customer").count(), done);
        let answer = post(&http, &url, "another", ANN).send().await.expect("it answers");
        assert_eq!(answer.status(), StatusCode::OK, "another key finds fine weather");
    }
}

#[tokio::test]
async fn too_many_requests_are_told_when_to_come_back_and_nothing_is_done() {
    let (stripe, url, http) = fake(seed_of(&[Weather::TooMany])).await;
    let answer = post(&http, &url, "k", ANN).send().await.expect("it answers");
    assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].to_str().ok()), (429, Some("1")));
    assert_eq!(stripe.books().of("customer").count(), 0);
}
