//! Messages, replies and errors whose own code fails or panics on their way, through the wrong door: each costs its own request alone, and that
//! one knows what became of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod town;

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use stable_interfaces::store::BoxError;
use stable_interfaces::transport::Codec;
use stable_interfaces::{Context, ContextError, Handle, Health, Host, Interface, RequestError, StableInterface};

use self::town::Town;

/// The conduct of a value on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Manner {
    Fine,
    WriteFails,
    WritePanics,
    ReadFails,
    ReadPanics,
}

const ODD: [Manner; 4] = [Manner::WriteFails, Manner::WritePanics, Manner::ReadFails, Manner::ReadPanics];

#[derive(Debug, PartialEq, Eq)]
struct Odd(Manner);

impl Serialize for Odd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Manner::WriteFails => Err(S::Error::custom("it will not be written")),
            Manner::WritePanics => std::panic::resume_unwind(Box::new("it panics when it is written")),
            manner => manner.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Odd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Odd, D::Error> {
        match Manner::deserialize(deserializer)? {
            Manner::ReadFails => Err(D::Error::custom("it will not be read")),
            Manner::ReadPanics => std::panic::resume_unwind(Box::new("it panics when it is read")),
            manner => Ok(Odd(manner)),
        }
    }
}

#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[error("the desk is closed")]
struct Closed(Odd, String);

impl From<ContextError> for Closed {
    fn from(error: ContextError) -> Closed {
        Closed(Odd(Manner::Fine), error.to_string())
    }
}

struct Desk;

impl StableInterface for Desk {
    const NAME: &'static str = "desk";
    type Error = Closed;
}

/// Counts, and answers with a reply or, if there is one, with an error of this conduct.
#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    message: Odd,
    reply: Manner,
    error: Option<Manner>,
}

impl Handle<Ask> for Desk {
    type Reply = Odd;

    async fn handle(&mut self, cx: &mut Context, Ask { reply, error, .. }: Ask) -> Result<Odd, Closed> {
        let count = cx.get::<u64>("count").await?.unwrap_or(0) + 1;
        cx.put("count", &count)?;
        error.map_or(Ok(Odd(reply)), |manner| Err(Closed(Odd(manner), String::new())))
    }
}

/// Fails, or panics, with words of so many bytes.
#[derive(Debug, Serialize, Deserialize)]
enum Long {
    Fail(usize),
    Panic(usize),
}

impl Handle<Long> for Desk {
    type Reply = ();

    async fn handle(&mut self, _: &mut Context, long: Long) -> Result<(), Closed> {
        match long {
            Long::Fail(bytes) => Err(Closed(Odd(Manner::Fine), "x".repeat(bytes))),
            Long::Panic(bytes) => std::panic::resume_unwind(Box::new("x".repeat(bytes))),
        }
    }
}

const FINE: Ask = Ask { message: Odd(Manner::Fine), reply: Manner::Fine, error: None };

struct Site {
    host: Host,
    desks: Interface<Desk>,
}

async fn start(town: &Town, name: &str) -> Site {
    let mut host = town.member(name, &town.fleet).transport(town.network.transport());
    let desks = host.interface(|_| Desk).forward::<Ask>("ask").forward::<Long>("long").register().unwrap();
    Site { host: host.start().await.unwrap(), desks }
}

/// A request through the wrong door, and the number of those that the owner has counted after it; then all goes on as if nothing had been.
async fn asked(ask: Ask) -> (Result<Odd, RequestError<Closed>>, u64) {
    let town = Town::new(2);
    let (zero, one) = (start(&town, "host-0").await, start(&town, "host-1").await);
    let id = town.id("host-1");
    let answer = zero.desks.request(&id, ask).await;
    let stored = one.desks.stored(&id, "count").await.unwrap();
    let count = stored.first().map_or(0, |(_, count)| serde_json::from_slice(count).unwrap());
    assert_eq!(zero.desks.request(&id, FINE).await.unwrap(), Odd(Manner::Fine), "the next one is as ever");
    assert_eq!((zero.host.health(), one.host.health()), (Health::Running, Health::Running));
    (answer, count)
}

#[tokio::test(start_paused = true)]
async fn a_message_that_cannot_be_written_or_read_is_refused_and_nothing_has_happened() {
    for manner in ODD {
        let (answer, count) = asked(Ask { message: Odd(manner), ..FINE }).await;
        let error = answer.unwrap_err();
        assert_eq!(count, 0, "{manner:?}: {error}");
        assert!(!error.may_have_happened(), "{manner:?}: {error:?}");
        let said = error.report();
        assert!(said.contains("it "), "{manner:?}: the words are kept: {said}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_cannot_be_written_or_read_says_that_its_request_may_have_happened() {
    for manner in ODD {
        let (answer, count) = asked(Ask { reply: manner, ..FINE }).await;
        let error = answer.unwrap_err();
        assert_eq!(count, 1, "{manner:?}: {error}");
        assert!(error.may_have_happened() && !error.is_retryable(), "{manner:?}: {error:?}");
        let said = error.report();
        assert!(said.contains("it "), "{manner:?}: the words are kept: {said}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_that_cannot_be_written_or_read_is_an_error_all_the_same_and_keeps_its_words() {
    for manner in ODD {
        let (answer, count) = asked(Ask { error: Some(manner), ..FINE }).await;
        let error = answer.unwrap_err();
        assert_eq!(count, 0, "{manner:?}: a handler that fails leaves nothing behind: {error}");
        assert!(!error.is_retryable(), "{manner:?}: {error:?}");
        let said = error.report();
        // What could be written is told as it was, where it cannot be read.
        let words =
            if matches!(manner, Manner::ReadFails | Manner::ReadPanics) { "Read" } else { "the desk is closed" };
        assert!(said.contains(words) && said.contains("it "), "{manner:?}: {said}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_or_a_panic_of_more_words_than_a_message_may_have_ends_no_link() {
    let town = Town::new(2);
    let (zero, _one) = (start(&town, "host-0").await, start(&town, "host-1").await);
    let id = town.id("host-1");
    for bytes in [1_000, 1_000_000, 2_000_000] {
        let failed = zero.desks.request(&id, Long::Fail(bytes)).await.unwrap_err();
        assert!(!failed.may_have_happened(), "{bytes} bytes: it is known that it failed");
        assert_eq!(matches!(failed, RequestError::Handler(..)), bytes < 1_024 * 1_024, "{bytes} bytes");
        let panicked = zero.desks.request(&id, Long::Panic(bytes)).await.unwrap_err();
        assert!(!panicked.may_have_happened(), "{bytes} bytes: it is known that it panicked");
        assert!(panicked.report().contains("xxx"), "its first words are told");
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_owner_is_nothing_of_it_is_written_or_read() {
    let town = Town::new(2);
    let one = start(&town, "host-1").await;
    let id = town.id("host-1");
    for manner in ODD {
        let ask = Ask { message: Odd(manner), reply: manner, error: None };
        assert_eq!(one.desks.request(&id, ask).await.unwrap(), Odd(manner));
        let ask = Ask { message: Odd(manner), reply: manner, error: Some(manner) };
        let error = one.desks.request(&id, ask).await.unwrap_err();
        assert!(matches!(error, RequestError::Handler(Closed(Odd(there), _), _) if there == manner));
    }
}

/// A form in which long runs of one byte are short, and that cannot write [`UNLUCKY`].
struct Packed;

const LONG: &str = "7,7,7,7,7,7,7,7,";
const SHORT: &str = "#";
const UNLUCKY: u8 = 13;
/// A picture of this alone is answered with one of [`UNLUCKY`].
const NEARLY: u8 = 12;

impl Codec for Packed {
    fn write<T: Serialize>(value: &T) -> Result<Vec<u8>, BoxError> {
        let text = serde_json::to_string(value)?;
        if text == format!("[{UNLUCKY}]") {
            return Err("it is unlucky".into());
        }
        Ok(format!("packed {}", text.replace(LONG, SHORT)).into_bytes())
    }

    fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BoxError> {
        let text = std::str::from_utf8(bytes)?.strip_prefix("packed ").ok_or("it is not packed")?;
        Ok(serde_json::from_str(&text.replace(SHORT, LONG))?)
    }
}

/// A picture, of which the reply is mostly a copy; its bytes are more as JSON than a message may have.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Picture(Vec<u8>);

impl Handle<Picture> for Desk {
    type Reply = Picture;

    async fn handle(&mut self, cx: &mut Context, picture: Picture) -> Result<Picture, Closed> {
        let count = cx.get::<u64>("count").await?.unwrap_or(0) + 1;
        cx.put("count", &count)?;
        Ok(if picture.0 == [NEARLY] { Picture(vec![UNLUCKY]) } else { picture })
    }
}

/// Starts a host that takes pictures from others in their own form, or as JSON.
async fn start_with(town: &Town, name: &str, is_packed: bool) -> Site {
    let mut host = town.member(name, &town.fleet).transport(town.network.transport());
    let desks = host.interface(|_| Desk);
    let desks = if is_packed { desks.forward_as::<Picture, Packed>("pic") } else { desks.forward::<Picture>("pic") };
    let desks = desks.register().unwrap();
    Site { host: host.start().await.unwrap(), desks }
}

#[tokio::test(start_paused = true)]
async fn what_a_form_of_its_own_cannot_write_is_refused_and_a_reply_is_unknown_for_it_has_happened() {
    let town = Town::new(2);
    let (zero, one) = (start_with(&town, "host-0", true).await, start_with(&town, "host-1", true).await);
    let id = town.id("host-1");
    for (byte, has_happened) in [(UNLUCKY, false), (NEARLY, true)] {
        let error = zero.desks.request(&id, Picture(vec![byte])).await.unwrap_err();
        assert_eq!(error.may_have_happened(), has_happened, "{error}");
        assert_eq!(one.desks.stored(&id, "count").await.unwrap().len(), usize::from(has_happened));
        let said = error.report();
        assert!(said.contains("cannot be written: it is unlucky") && !said.contains("JSON"), "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_may_choose_a_form_of_its_own_which_its_key_does_not_change() {
    let town = Town::new(2);
    let start = async |name: &str, is_packed: bool| start_with(&town, name, is_packed).await;
    let (zero, one) = (start("host-0", true).await, start("host-1", true).await);
    let id = town.id("host-1");
    let large = || Picture(vec![7; 600_000]);
    assert!(serde_json::to_vec(&large()).unwrap().len() > 1_024 * 1_024);
    assert_eq!(zero.desks.request(&id, large()).await.unwrap(), large());
    // Under a key it is the same message at both doors.
    let small = || Picture(vec![7; 100]);
    for desks in [&zero.desks, &one.desks, &zero.desks] {
        assert_eq!(desks.request_once(&id, "key", small()).await.unwrap(), small());
    }
    let stored = one.desks.stored(&id, "count").await.unwrap();
    assert_eq!(stored[0].1, "2", "once for each");
    zero.host.crash();
    // Whoever does not know the form is refused, and nothing has happened.
    let zero = start("host-0", false).await;
    let refused = zero.desks.request(&id, small()).await.unwrap_err();
    assert!(!refused.may_have_happened(), "{refused}");
    let said = refused.report();
    assert!(said.contains("it is not packed"), "{said}");
    assert!(matches!(zero.desks.request(&id, large()).await, Err(RequestError::TooLarge(_))), "as JSON");
}
