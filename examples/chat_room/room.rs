//! The room: one [`Room`] per name, its members and what was said. This is the file to copy from.
//!
//! Whatever a member has seen is durable: an entry reaches the members when its commit is, in the order of its numbers, which
//! have no gap. Who is a member is durable as well, and each member has an alarm that says when it has been silent for too
//! long. Hearing from the member moves the alarm; nothing else is needed to notice that a client, or this whole process,
//! has vanished.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stable_interfaces::{
    Alarm, Closed, Connecting, ConnectionId, Context, ContextError, OnAlarm, OnConnect, Peer, StableInterface,
    Timestamp,
};
use tokio::time::{Instant, timeout_at};

/// How many entries a room keeps; older ones are deleted as new ones come.
pub(crate) const HISTORY: usize = 100;
/// How many members a room takes.
const MEMBERS: usize = 1_000;
/// The longest name of a member or of a room, in bytes.
const MAX_NAME: usize = 64;
/// The longest text, in bytes.
pub(crate) const MAX_TEXT: usize = 4_096;
/// How long the room waits for those who read too slowly, before it goes on without them.
const PATIENCE: Duration = Duration::from_secs(1);
/// What they are told.
pub(crate) const TOO_SLOW: &str = "you read too slowly; come back for the rest";

/// What a member's clients are told when it has left, by whichever of them.
pub(crate) const LEFT: &str = "you have left";

/// A chat room.
///
/// In its storage are its history, `entry/{number}`, and its members, `member/{name}`; each member has an alarm, `gone/{name}`.
#[derive(Debug)]
pub(crate) struct Room {
    presence: Presence,
    history: VecDeque<Entry>,
    members: BTreeSet<String>,
    /// The clients that are connected; a member may have several, or for a while none.
    clients: BTreeMap<ConnectionId, Client>,
}

/// When a member counts as gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Presence {
    /// Not heard from for so long.
    pub(crate) gone_after: Duration,
    /// Since when this host listens. Before that nobody could be heard, so that is held against no one.
    pub(crate) listening_since: Timestamp,
}

#[derive(Debug)]
struct Client {
    name: String,
    peer: Peer<Arc<str>>,
}

/// What happened in a room, numbered from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) number: u64,
    pub(crate) at: Timestamp,
    pub(crate) who: String,
    #[serde(flatten)]
    pub(crate) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "lowercase")]
pub(crate) enum What {
    Joined,
    Said {
        tag: u64,
        text: String,
    },
    /// Took its leave.
    Left,
    /// Was not heard from any more.
    Gone,
}

/// A client introduces itself.
#[derive(Debug, Deserialize)]
pub(crate) struct Hello {
    pub(crate) name: String,
    /// The last entry it has seen, if it comes back.
    pub(crate) after: Option<u64>,
}

/// What a client sends.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Request {
    /// Says something. A client that has not seen its entry sends it again under the same tag, and it counts once.
    Say { tag: u64, text: String },
    /// Still there.
    Here,
    /// Going.
    Leave,
}

/// What a client is sent, as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Event {
    /// Always the first.
    Welcome(Welcome),
    Entry(Entry),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// Who is there, the client included.
    pub(crate) members: Vec<String>,
    /// What the client has not seen.
    pub(crate) history: Vec<Entry>,
    /// How many entries before these it has not seen either, and cannot any more.
    pub(crate) missed: u64,
    /// A client says something, if only that it is here, well within this time.
    pub(crate) gone_after_ms: u64,
    /// Says whether somebody else is connected under the same name: the same person in another window, or another of that name.
    #[serde(default)]
    pub(crate) shared: bool,
}

impl Room {
    pub(crate) fn new(presence: Presence) -> Room {
        Room { presence, history: VecDeque::new(), members: BTreeSet::new(), clients: BTreeMap::new() }
    }
}

impl StableInterface for Room {
    const NAME: &'static str = "room";
    type Error = ContextError;

    async fn on_start(&mut self, cx: &mut Context) -> Result<(), ContextError> {
        for (_key, entry) in cx.list("entry/").await? {
            self.history.push_back(serde_json::from_slice(&entry)?);
        }
        for (key, _) in cx.list("member/").await? {
            self.members.extend(key.strip_prefix("member/").map(str::to_owned));
        }
        Ok(())
    }

    /// What an operation refuses is found out before memory changes, so one entry that is too large costs nobody the connection.
    fn keeps_memory(error: &ContextError) -> bool {
        matches!(error, ContextError::InvalidId { .. } | ContextError::TooLarge(_))
    }
}

impl OnConnect for Room {
    type Meta = Hello;
    type Incoming = Request;
    type Outgoing = Arc<str>;

    async fn on_connect(
        &mut self,
        cx: &mut Context,
        client: &mut Connecting<Arc<str>>,
        Hello { name, after }: Hello,
    ) -> Result<(), ContextError> {
        if let Err(reason) = check_name(&name).and(check_name(cx.id())) {
            client.reject(reason);
            return Ok(());
        }
        let is_new = !self.members.contains(&name);
        if is_new && self.members.len() >= MEMBERS {
            client.reject("the room is full");
            return Ok(());
        }
        self.heard(cx, &name)?;
        if is_new {
            cx.put(&member_key(&name), &())?;
            self.announce(cx, &name, What::Joined).await?;
            self.members.insert(name.clone());
        }
        let peer = client.accept();
        // All in one message: a client's buffer holds fewer than a history.
        let shared = self.clients.values().any(|client| client.name == name);
        let welcome = json(&Event::Welcome(Welcome { shared, ..self.welcome(after) }))?;
        if peer.try_send(cx, welcome).is_ok() {
            self.clients.insert(peer.id(), Client { name, peer });
        }
        Ok(())
    }

    async fn on_receive(&mut self, cx: &mut Context, from: ConnectionId, request: Request) -> Result<(), ContextError> {
        let Some(client) = self.clients.get(&from) else { return Ok(()) };
        let name = client.name.clone();
        match request {
            Request::Here => self.heard(cx, &name),
            Request::Say { tag, text } => {
                self.heard(cx, &name)?;
                let is_this = |what: &What| matches!(what, What::Said { tag: said, .. } if *said == tag);
                if self.history.iter().any(|entry| entry.who == name && is_this(&entry.what)) {
                    return Ok(());
                }
                self.announce(cx, &name, What::Said { tag, text }).await
            }
            Request::Leave => {
                cx.cancel_alarm(&alarm_id(&name))?;
                self.goes(cx, &name, What::Left, LEFT).await
            }
        }
    }

    /// A client that went away may be back in a moment, as after a reload: the member is gone when its alarm says so.
    async fn on_disconnect(&mut self, _: &mut Context, from: ConnectionId, _: Closed) -> Result<(), ContextError> {
        self.clients.remove(&from);
        Ok(())
    }
}

impl OnAlarm for Room {
    /// Nothing was heard from a member for long enough, or the alarm would have been moved.
    async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), ContextError> {
        let name: String = alarm.meta()?;
        let Presence { gone_after, listening_since } = self.presence;
        let heard_until = listening_since + gone_after;
        if cx.now() < heard_until {
            // The time ran out while no host was there to hear the member. Now it has all of it again.
            return cx.set_alarm(alarm.id(), heard_until, &name);
        }
        self.goes(cx, &name, What::Gone, "nothing was heard from you for too long").await
    }
}

impl Room {
    /// Moves the alarm that would say that the member is gone.
    fn heard(&self, cx: &mut Context, name: &str) -> Result<(), ContextError> {
        cx.set_alarm(&alarm_id(name), cx.now() + self.presence.gone_after, name)
    }

    /// A member goes, for whatever reason, and its clients are told.
    async fn goes(&mut self, cx: &mut Context, name: &str, how: What, reason: &str) -> Result<(), ContextError> {
        if !self.members.contains(name) {
            return Ok(());
        }
        cx.delete(&member_key(name))?;
        self.announce(cx, name, how).await?;
        self.members.remove(name);
        for (_, client) in self.clients.extract_if(.., |_, client| client.name == name) {
            client.peer.close(cx, reason);
        }
        Ok(())
    }

    /// Writes an entry and sends it to everyone, the one it is about included.
    ///
    /// A client that has no room for it holds the room back for a while. If it still has none then, it is let go, with what it was
    /// sent before and the reason; it comes back for the rest.
    async fn announce(&mut self, cx: &mut Context, who: &str, what: What) -> Result<(), ContextError> {
        let number = self.history.back().map_or(1, |last| last.number + 1);
        let entry = Entry { number, at: cx.now(), who: who.to_owned(), what };
        let event = json(&Event::Entry(entry.clone()))?;
        let oldest = self.history.front().filter(|_| self.history.len() >= HISTORY).map(|oldest| oldest.number);
        cx.put(&entry_key(number), &entry)?;
        if let Some(oldest) = oldest {
            cx.delete(&entry_key(oldest))?;
            self.history.pop_front();
        }
        self.history.push_back(entry);

        let until = Instant::now() + PATIENCE;
        let mut too_slow = Vec::new();
        for (id, client) in &self.clients {
            // `Ok(Err(closed))` is a client that has gone: `on_disconnect` is on its way.
            if timeout_at(until, client.peer.send(cx, event.clone())).await.is_err() {
                too_slow.push(*id);
            }
        }
        for client in too_slow.iter().filter_map(|id| self.clients.remove(id)) {
            client.peer.close(cx, TOO_SLOW);
        }
        Ok(())
    }

    /// For a client that has seen everything up to the entry `after`.
    fn welcome(&self, after: Option<u64>) -> Welcome {
        let newest = self.history.back().map_or(0, |entry| entry.number);
        // A number that is yet to come is of another room, with data that is there no more.
        let after = after.filter(|after| *after <= newest);
        let history: Vec<_> = self.history.iter().filter(|entry| Some(entry.number) > after).cloned().collect();
        let missed = match (after, history.first()) {
            (Some(after), Some(first)) => first.number - after - 1,
            _ => 0,
        };
        let gone_after_ms = u64::try_from(self.presence.gone_after.as_millis()).unwrap_or(u64::MAX);
        Welcome { members: self.members.iter().cloned().collect(), history, missed, gone_after_ms, shared: false }
    }
}

/// Padded, so that entries are listed in the order of their numbers.
fn entry_key(number: u64) -> String {
    format!("entry/{number:020}")
}

fn member_key(name: &str) -> String {
    format!("member/{name}")
}

fn alarm_id(name: &str) -> String {
    format!("gone/{name}")
}

fn json(event: &Event) -> Result<Arc<str>, ContextError> {
    Ok(serde_json::to_string(event)?.into())
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) || name.trim() != name {
        return Err(format!("a name has 1 to {MAX_NAME} bytes, no control characters, and no space at either end"));
    }
    Ok(())
}

/// As a terminal shows it.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = &self.who;
        match &self.what {
            What::Said { text, .. } => write!(f, "{who}: {text}"),
            What::Joined => write!(f, "* {who} has joined"),
            What::Left => write!(f, "* {who} has left"),
            What::Gone => write!(f, "* {who} is gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use stable_interfaces::{Host, MemoryStore, RequestError};

    use super::*;

    fn room(numbers: std::ops::RangeInclusive<u64>) -> Room {
        let mut room =
            Room::new(Presence { gone_after: Duration::from_secs(9), listening_since: Timestamp::UNIX_EPOCH });
        let entry = |number| Entry { number, at: Timestamp::UNIX_EPOCH, who: "ann".to_owned(), what: What::Joined };
        room.history.extend(numbers.map(entry));
        room
    }

    #[test]
    fn who_comes_back_gets_what_it_has_not_seen_and_is_told_of_what_it_cannot_get() {
        let seen = |after| {
            let welcome = room(11..=14).welcome(after);
            (welcome.history.iter().map(|entry| entry.number).collect::<Vec<_>>(), welcome.missed)
        };
        assert_eq!(seen(None), (vec![11, 12, 13, 14], 0));
        assert_eq!(seen(Some(12)), (vec![13, 14], 0));
        assert_eq!(seen(Some(14)), (vec![], 0));
        assert_eq!(seen(Some(10)), (vec![11, 12, 13, 14], 0));
        assert_eq!(seen(Some(7)), (vec![11, 12, 13, 14], 3));
        assert_eq!(seen(Some(99)), (vec![11, 12, 13, 14], 0));
    }

    #[tokio::test]
    async fn a_room_keeps_its_ninety_nine_connections_when_the_hundredth_is_refused() {
        let mut host = Host::local(MemoryStore::new());
        let presence = Presence { gone_after: Duration::from_secs(60), listening_since: Timestamp::UNIX_EPOCH };
        let rooms = host.interface(move |_| Room::new(presence)).with_alarms().register().expect("a good name");
        let host = host.start().await.expect("it starts");
        let hello = |name: &str| Hello { name: name.to_owned(), after: None };
        let mut clients = Vec::new();
        for _ in 0..99 {
            // One member with many tabs: more members than that would have to read how they all join.
            let client = rooms.connect("lobby", hello("ann")).await.expect("there is room");
            client.recv().await.expect("a welcome");
            clients.push(client);
        }
        let refused = rooms.connect("lobby", hello(" bob")).await;
        assert!(matches!(refused, Err(RequestError::Rejected(_))), "{refused:?}");
        clients[7].send(Request::Say { tag: 1, text: "still there?".to_owned() }).await.expect("open");
        for client in &clients {
            assert!(client.recv().await.expect("open").contains("still there?"));
        }
        drop(host);
    }

    #[test]
    fn names_that_nobody_could_read_are_refused() {
        for name in ["", " ann", "ann\n", "a\0b", &"a".repeat(65)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name("Ann Müller").is_ok());
    }

    #[test]
    fn events_are_the_json_that_the_page_reads() {
        let said = What::Said { tag: 7, text: "hi".to_owned() };
        let entry = Entry { number: 3, at: Timestamp::from_millis(5), who: "ann".to_owned(), what: said };
        let text = json(&Event::Entry(entry)).expect("an entry is JSON");
        assert_eq!(*text, *r#"{"entry":{"number":3,"at":5,"who":"ann","what":"said","tag":7,"text":"hi"}}"#);
        let request: Request = serde_json::from_str(r#"{"say":{"tag":7,"text":"hi"}}"#).expect("a request");
        assert!(matches!(request, Request::Say { tag: 7, .. }));
        assert!(matches!(serde_json::from_str(r#""here""#), Ok(Request::Here)));
    }
}
