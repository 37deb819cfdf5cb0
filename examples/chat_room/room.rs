//! The room: one [`Room`] per name, its members and what was said.
//!
//! Whatever a member has seen is durable: an entry reaches the members when its commit is, in the order of its numbers, which
//! have no gap. Who is a member is durable as well, and each member has an alarm that says when it has been silent for too
//! long. Hearing from the member moves the alarm; nothing else is needed to notice that a client, or this whole process,
//! has vanished.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use stable_interfaces::{
    Alarm, Closed, Connecting, ConnectionId, Context, ContextError, OnAlarm, OnConnect, Peer, StableInterface,
    Timestamp,
};
use tokio::time::{Instant, timeout_at};

use crate::protocol::{Entry, Event, Hello, LEFT, Request, TOO_SLOW, Welcome, What};

/// The entries that a room keeps; older ones are deleted as new ones come.
pub(crate) const HISTORY: usize = 100;
/// The most members that a room takes.
const MEMBERS: usize = 1_000;
/// The longest name of a member or of a room, in bytes.
const MAX_NAME: usize = 64;
/// The time that the room waits for those who read too slowly, before it goes on without them.
const PATIENCE: Duration = Duration::from_secs(1);

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

/// The rule by which a member counts as gone.
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

    /// Keeps memory where an operation refused its arguments: that is found out before memory changes, so one entry that is too large costs nobody the connection.
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

#[cfg(test)]
mod tests;
