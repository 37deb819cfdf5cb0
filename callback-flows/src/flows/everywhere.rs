//! The events of all flows of the fleet: while somebody on this host listens to them, each other host is asked for those of its own.
//!
//! One task of the host asks, however many listen. It keeps for each other host the number of the last event that it has been told, so that
//! it goes on behind that after whatever goes wrong on the way; from a host that starts anew, or that joins, it has all from the start of that.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use stable_interfaces::transport::Question;
use stable_interfaces::{RequestError, Timestamp};

use super::Flows;
use super::elsewhere::HEARD_WITHIN;
use crate::events::FlowEvent;
use crate::hub::OfAll;
use crate::instance::TurnError;

/// The time after which is looked who is there, and whoever did not answer is asked again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The time from the start of a host for which its events are kept also if nobody has asked for them.
const KEPT_AT_START: Duration = Duration::from_secs(60);
/// The number of hosts from which on those are forgotten that are gone.
const MOST_HOSTS: usize = 1_024;
/// No life of a host.
const NOBODY: u64 = 0;

/// Asks a host for the events of all its flows behind a number.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct HearAll {
    /// The process that the number is of; [`NOBODY`] if it has not been asked before.
    life: u64,
    after: u64,
    /// All events of a process that has not been asked before are wanted, and not only those from now on.
    #[serde(default)]
    all: bool,
}

/// The answer to [`HearAll`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Heard {
    life: u64,
    last: u64,
    missed: u64,
    events: Vec<Told>,
}

/// An event on its way.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    flow: String,
    sequence: u64,
    at: Timestamp,
    name: String,
    value: Box<RawValue>,
}

impl Question for HearAll {
    const NAME: &'static str = "hear-all";
    type Answer = Heard;
}

impl Told {
    fn of(event: &FlowEvent) -> Told {
        Told {
            flow: event.instance().to_owned(),
            sequence: event.sequence(),
            at: event.at(),
            name: event.name().to_owned(),
            value: event.value().to_owned(),
        }
    }

    fn into_event(self) -> FlowEvent {
        FlowEvent::new(self.flow.into(), self.sequence, self.at, self.name.into(), self.value)
    }
}

/// One question on its way, with the host that it is for.
type Asking = Pin<Box<dyn Future<Output = (Arc<str>, Result<Heard, RequestError<TurnError>>)> + Send>>;

/// The other hosts that are asked, each with where it is.
#[derive(Default)]
struct Followed {
    hosts: BTreeMap<Arc<str>, Place>,
    asking: FuturesUnordered<Asking>,
}

/// The events of one host as far as they are known here.
struct Place {
    next: HearAll,
    /// The time since which it is being asked, by the clock of this host.
    asked_at: Option<Duration>,
}

impl Place {
    fn is_known(&self) -> bool {
        self.next.life != NOBODY
    }
}

impl Flows {
    /// Waits until the other hosts know that somebody on this one listens to all flows; not for long, if one cannot be reached.
    #[cfg(feature = "http")]
    pub(crate) async fn follows_others(&self) {
        let Some(clock) = self.interface.clock() else { return };
        tokio::select! { biased;
            () = self.registry.hub.followed() => {}
            () = clock.sleep(2 * LOOK_AGAIN) => {}
        }
    }

    /// Asks other hosts for their events, while somebody on this one listens to all.
    pub(super) async fn follow_others(self) {
        let Some(clock) = self.interface.clock() else { return };
        let own = self.registry.hub.own();
        let mut forgotten = pin!(async {
            clock.sleep(KEPT_AT_START).await;
            own.forget();
            std::future::pending::<()>().await;
        });
        loop {
            tokio::select! { biased;
                () = own.listened() => {}
                () = &mut forgotten => {}
            }
            let mut followed = Followed::default();
            let mut is_first = true;
            while self.registry.hub.has_listeners_to_all() {
                self.look_who_is_there(&mut followed, is_first, clock.elapsed());
                self.registry.hub.follows(!is_first || followed.hosts.is_empty());
                is_first = false;
                let mut tick = pin!(clock.sleep(LOOK_AGAIN));
                loop {
                    tokio::select! { biased;
                        Some((host, heard)) = followed.asking.next() => {
                            self.hear_of(&mut followed, host, heard, clock.elapsed());
                            if followed.hosts.values().all(Place::is_known) {
                                self.registry.hub.follows(true);
                            }
                        }
                        () = &mut tick => break,
                        () = &mut forgotten => {}
                    }
                }
            }
            self.registry.hub.follows(false);
        }
    }

    /// Asks each other host that is there and is not being asked. From those that came later than the first look, all is wanted.
    fn look_who_is_there(&self, followed: &mut Followed, is_first: bool, now: Duration) {
        let mut members = self.interface.members();
        members.retain(|member| *member.name != *self.interface.host());
        if followed.hosts.len() > MOST_HOSTS {
            followed.hosts.retain(|host, _| members.iter().any(|member| member.name == *host));
        }
        for member in members {
            let next = HearAll { life: NOBODY, after: 0, all: !is_first };
            // One whose lease was over for a while goes on where it was.
            let place = followed.hosts.entry(member.name.clone()).or_insert(Place { next, asked_at: None });
            if place.asked_at.is_none() {
                self.ask_for_events(followed, member.name, now);
            }
        }
    }

    fn ask_for_events(&self, followed: &mut Followed, host: Arc<str>, now: Duration) {
        let Some(place) = followed.hosts.get_mut(&host) else { return };
        place.asked_at = Some(now);
        let (interface, question) = (self.interface.clone(), place.next.clone());
        followed.asking.push(Box::pin(async move {
            let heard = interface.ask_host(&host, &question).await;
            (host, heard)
        }));
    }

    /// Tells what a host has told, and asks it for what comes next: at once, unless it had nothing to tell and has not waited for anything.
    fn hear_of(
        &self,
        followed: &mut Followed,
        host: Arc<str>,
        heard: Result<Heard, RequestError<TurnError>>,
        now: Duration,
    ) {
        let Some(place) = followed.hosts.get_mut(&host) else { return };
        let has_waited = place.asked_at.take().is_some_and(|asked_at| now.saturating_sub(asked_at) >= LOOK_AGAIN);
        let Ok(Heard { life, last, missed, events }) = heard else { return };
        let is_new = !place.is_known();
        place.next = HearAll { life, after: last, all: true };
        let goes_on = is_new || has_waited || !events.is_empty();
        if missed > 0 {
            self.registry.hub.relay(OfAll::Missed(missed));
        }
        for told in events {
            self.registry.hub.relay(OfAll::Event(told.into_event()));
        }
        if goes_on {
            self.ask_for_events(followed, host, now);
        }
    }

    /// Answers with the events of all flows of this host, when there are some, and after a while if there are none.
    pub(super) async fn all_news(&self, HearAll { life, after, all }: HearAll) -> Heard {
        let (own, process) = (self.registry.hub.own(), self.registry.process);
        own.ask();
        let nothing = |last| Heard { life: process, last, missed: 0, events: Vec::new() };
        let after = match life {
            NOBODY if !all => return nothing(own.last()),
            same if same == process => after,
            // That process is gone.
            _ => 0,
        };
        let Some(clock) = self.interface.clock() else { return nothing(after) };
        tokio::select! { biased;
            () = own.more_than(after) => {}
            () = self.interface.stopping() => return nothing(after),
            () = clock.sleep(HEARD_WITHIN) => return nothing(after),
        }
        let behind = own.behind(after);
        let events = behind.events.iter().map(Told::of).collect();
        Heard { life: process, last: behind.last, missed: behind.missed, events }
    }
}
