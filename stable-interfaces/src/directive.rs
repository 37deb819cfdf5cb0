//! Directives: what anyone may ask the owner of an instance to do with its alarms and dead letters.
//!
//! A directive travels as a message, through the inbox of the instance, so it is durable when it is posted, can be posted in a
//! transaction of the application, and is carried out once in effect: by the owner, in its turn among the instance's messages,
//! in the commit that removes it. The instance is not built for it.
//!
//! The inbox of directives is not that of the interface but one beside it, under a name that no interface can have: so nothing posted as a
//! message is ever taken for a directive, no IDs meet, and a program of an older version leaves it alone.

use bytes::Bytes;
use serde::Serialize;

use crate::alarm::{check_alarm_id, encode_meta};
use crate::clock::Timestamp;
use crate::dead::Dead;
use crate::error::ContextError;
use crate::id::{beside, interface_of};
use crate::inbox::NewPost;
use crate::store::{Addressed, AlarmRow, DeadKey, InboxRow, InstanceName, MessageHeaders, Revision};
use crate::sync::Arc;

/// Order an interface must have been registered with so that something is ever handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    Alarms,
    Inbox,
}

impl Needs {
    /// The needs of a dead letter that is brought back.
    pub(crate) fn of(dead: &DeadKey) -> Needs {
        match interface_of(&dead.name.interface) {
            (_, true) => Needs::Nothing,
            (_, false) if dead.is_message => Needs::Inbox,
            (_, false) => Needs::Alarms,
        }
    }

    /// Says whether an interface has it.
    ///
    /// # Errors
    /// [`ContextError::Unhandled`] names the interface and the line that is missing.
    pub(crate) fn check(self, interface: &str, has_alarms: bool, has_inbox: bool) -> Result<(), ContextError> {
        let (what, line) = match self {
            Needs::Alarms if !has_alarms => ("alarms", "with_alarms()"),
            Needs::Inbox if !has_inbox => ("messages", "with_inbox()"),
            _ => return Ok(()),
        };
        let missing = format!("{what}: {interface:?} was registered without `{line}`");
        Err(ContextError::Unhandled(missing.into()))
    }
}

/// Something to do with an instance's alarms or dead letters, that its owner does when it gets the message.
///
/// The directives of one instance are carried out in the order of their arrival, to the millisecond: of two within one, or in one
/// transaction, either may be first.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use stable_interfaces::Directive;
///
/// let remind = Directive::set_alarm("remind", SystemTime::now() + Duration::from_secs(60), &"gently")?.id("remind-17");
/// # Ok::<(), stable_interfaces::ContextError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    id: Option<String>,
    order: Order,
}

/// The thing that a directive asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    SetAlarm {
        alarm: String,
        at: Timestamp,
        meta: Bytes,
    },
    CancelAlarm {
        alarm: String,
    },
    FireNow {
        alarm: String,
    },
    Requeue(DeadKey),
    Discard(DeadKey),
    /// Set again as it was, by a host whose store lost it.
    Restore {
        alarm: String,
        due: Timestamp,
        scheduled_at: Timestamp,
        attempt: u32,
        meta: Bytes,
    },
}

impl Directive {
    /// Sets an alarm, as [`Context::set_alarm`](crate::Context::set_alarm) does.
    ///
    /// # Errors
    /// As [`Context::set_alarm`](crate::Context::set_alarm), for an ID that cannot be one and for too large or unserializable `meta`.
    pub fn set_alarm(
        alarm: &str,
        at: impl Into<Timestamp>,
        meta: &(impl Serialize + ?Sized),
    ) -> Result<Directive, ContextError> {
        let id = checked(alarm)?;
        Ok(Directive::of(Order::SetAlarm { alarm: id, at: at.into(), meta: encode_meta(alarm, meta)? }))
    }

    /// Cancels an alarm, if it exists.
    ///
    /// # Errors
    /// [`ContextError::InvalidId`] for an ID that cannot be one.
    pub fn cancel_alarm(alarm: &str) -> Result<Directive, ContextError> {
        Ok(Directive::of(Order::CancelAlarm { alarm: checked(alarm)? }))
    }

    /// Makes an alarm due at once, if it exists.
    ///
    /// # Errors
    /// [`ContextError::InvalidId`] for an ID that cannot be one.
    pub fn fire_now(alarm: &str) -> Result<Directive, ContextError> {
        Ok(Directive::of(Order::FireNow { alarm: checked(alarm)? }))
    }

    /// Brings a dead letter back, as [`Interface::requeue`](crate::Interface::requeue) does. For the instance it belonged to.
    #[must_use]
    pub fn requeue(dead: &Dead) -> Directive {
        Directive::of(Order::Requeue(dead.letter.key()))
    }

    /// Removes a dead letter for good. Goes to the instance that the letter belonged to.
    #[must_use]
    pub fn discard(dead: &Dead) -> Directive {
        Directive::of(Order::Discard(dead.letter.key()))
    }

    /// Sets the directive's ID as a message: while one with the same ID waits, a second is dropped as a duplicate. Default: a random ID.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Directive {
        self.id = Some(id.into());
        self
    }

    /// Order the interface must have been registered with for this to be of any use. An alarm that a store lost is set again in any
    /// case: it is then left in the store as it was before.
    pub(crate) fn needs(&self) -> Needs {
        match &self.order {
            Order::SetAlarm { .. } | Order::FireNow { .. } => Needs::Alarms,
            Order::Requeue(key) => Needs::of(key),
            Order::CancelAlarm { .. } | Order::Discard(_) | Order::Restore { .. } => Needs::Nothing,
        }
    }

    /// Sets an alarm again as it was when a store lost it, unless it has been set since.
    pub(crate) fn restore(row: &AlarmRow) -> Directive {
        let order = Order::Restore {
            alarm: row.id.to_string(),
            due: row.due,
            scheduled_at: row.scheduled_at,
            attempt: row.attempts.failed,
            meta: row.meta.clone(),
        };
        let Revision { epoch, counter } = row.revision;
        Directive::of(order).id(format!("restore {epoch}.{counter}"))
    }

    /// Does this, as its parts say it, without a message.
    pub(crate) fn into_order(self) -> Order {
        self.order
    }

    fn of(order: Order) -> Directive {
        Directive { id: None, order }
    }

    /// The directive as a message: what to do in its headers, an alarm's meta as its body.
    pub(crate) fn into_post(self) -> NewPost {
        let mut post = self.order.into_post();
        post.id = self.id;
        post
    }

    /// Tells whether a message is a directive; if so, it reads the same when it is written again.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn try_out(row: &InboxRow) -> bool {
        let Ok(order) = Order::of_message(row) else { return false };
        let post = order.clone().into_post();
        let again = InboxRow { headers: post.headers, body: post.body, ..row.clone() };
        assert_eq!(Order::of_message(&again), Ok(order));
        true
    }
}

impl Order {
    /// The order as a message without an ID.
    pub(crate) fn into_post(self) -> NewPost {
        let letter = |verb: &str, key: DeadKey| {
            NewPost::default()
                .header("do", verb)
                .header("died-at", key.died_at.as_millis().to_string())
                .header("of", &*key.name.interface)
                .header("kind", if key.is_message { "message" } else { "alarm" })
                .header("id", &*key.id)
        };
        match self {
            Order::SetAlarm { alarm, at, meta } => NewPost::new(meta)
                .header("do", "set-alarm")
                .header("alarm", alarm)
                .header("at", at.as_millis().to_string()),
            Order::CancelAlarm { alarm } => NewPost::default().header("do", "cancel-alarm").header("alarm", alarm),
            Order::FireNow { alarm } => NewPost::default().header("do", "fire-now").header("alarm", alarm),
            Order::Requeue(key) => letter("requeue", key),
            Order::Discard(key) => letter("discard", key),
            Order::Restore { alarm, due, scheduled_at, attempt, meta } => NewPost::new(meta)
                .header("do", "restore-alarm")
                .header("alarm", alarm)
                .header("at", due.as_millis().to_string())
                .header("scheduled-at", scheduled_at.as_millis().to_string())
                .header("attempt", attempt.to_string()),
        }
    }

    /// Reads a message back.
    ///
    /// # Errors
    /// The text says what cannot be understood.
    pub(crate) fn of_message(row: &InboxRow) -> Result<Order, String> {
        Order::read(&row.name.instance, &row.headers, &row.body)
    }

    /// Reads an order to an instance back from the headers and the body of its message.
    ///
    /// # Errors
    /// The text says what cannot be understood.
    pub(crate) fn read(instance: &Arc<str>, headers: &MessageHeaders, body: &Bytes) -> Result<Order, String> {
        let header = |name: &str| {
            let found = headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
            found.ok_or_else(|| format!("a directive without {name:?}"))
        };
        let time = |name: &str| {
            let text = header(name)?;
            text.parse().map(Timestamp::from_millis).map_err(|_| format!("{text:?} is no time for {name:?}"))
        };
        let letter = || {
            let name = InstanceName { interface: header("of")?.into(), instance: instance.clone() };
            let is_message = header("kind")? == "message";
            Ok::<_, String>(DeadKey { died_at: time("died-at")?, name, is_message, id: header("id")?.into() })
        };
        Ok(match &*header("do")? {
            "set-alarm" => Order::SetAlarm { alarm: header("alarm")?, at: time("at")?, meta: body.clone() },
            "cancel-alarm" => Order::CancelAlarm { alarm: header("alarm")? },
            "fire-now" => Order::FireNow { alarm: header("alarm")? },
            "requeue" => Order::Requeue(letter()?),
            "discard" => Order::Discard(letter()?),
            "restore-alarm" => Order::Restore {
                alarm: header("alarm")?,
                due: time("at")?,
                scheduled_at: time("scheduled-at")?,
                attempt: header("attempt")?.parse().map_err(|_| "a directive with an impossible attempt".to_owned())?,
                meta: body.clone(),
            },
            // Of a newer version, perhaps: it is tried again, and then kept as a dead letter.
            other => return Err(format!("this program knows no directive {other:?}")),
        })
    }
}

impl Addressed {
    /// A directive for the instance `id` of the interface called `interface`.
    ///
    /// # Errors
    /// [`ContextError::InvalidId`] for a name or ID that cannot be one.
    pub fn directive(interface: &str, id: &str, directive: Directive) -> Result<Addressed, ContextError> {
        let NewPost { id: message_id, headers, body } = directive.into_post();
        Addressed::new(interface, beside(interface), id, message_id, headers, body)
    }
}

fn checked(alarm: &str) -> Result<String, ContextError> {
    check_alarm_id(alarm)?;
    Ok(alarm.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{MAX_VALUE_BYTES, is_interface_name};
    use crate::store::{NewMessage, ShardId};

    fn row(directive: Directive) -> InboxRow {
        let NewPost { headers, body, .. } = directive.into_post();
        let name = InstanceName { interface: beside("order"), instance: "17".into() };
        NewMessage { shard: ShardId(0), name, id: "d".into(), headers, body }.into_row(Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_directive_comes_back_from_its_message_as_it_was() {
        let key = DeadKey {
            died_at: Timestamp::from_millis(-7),
            name: InstanceName { interface: beside("order"), instance: "17".into() },
            is_message: true,
            id: "é\n".into(),
        };
        let at = Timestamp::from_millis(253_402_300_799_999);
        for directive in [
            Directive::set_alarm("a", at, &serde_json::json!({ "n": 1.5 })).expect("it is within the limits"),
            Directive::cancel_alarm("a").expect("a good ID"),
            Directive::fire_now("a").expect("a good ID"),
            Directive::of(Order::Requeue(key.clone())),
            Directive::of(Order::Discard(DeadKey { is_message: false, ..key })),
            Directive::of(Order::Restore {
                alarm: "a".into(),
                due: at,
                scheduled_at: Timestamp::from_millis(-1),
                attempt: 7,
                meta: Bytes::from_static(b"{}"),
            }),
        ] {
            assert_eq!(Order::of_message(&row(directive.clone())).as_ref(), Ok(&directive.order));
        }
    }

    #[test]
    fn no_interface_can_have_the_name_of_an_inbox_for_directives() {
        assert!(!is_interface_name(&beside("order")));
        assert_eq!(interface_of(&beside("order")), ("order", true));
        assert_eq!(interface_of("order"), ("order", false));
    }

    #[test]
    fn what_cannot_be_an_alarm_is_refused_before_it_is_posted() {
        assert!(matches!(Directive::cancel_alarm(""), Err(ContextError::InvalidId { .. })));
        let large = "x".repeat(MAX_VALUE_BYTES);
        assert!(matches!(Directive::set_alarm("a", 0, &large), Err(ContextError::TooLarge(_))));
    }
}
