//! The operations on an instance that are not messages of its interface, as they cross from host to host: on its alarms and dead letters, and to stop
//! it.
//!
//! They are the library's own, so they cross under one reserved name and need not be registered. Each is named by its kind; one that the owner
//! does not know, for its release is older or newer, is answered as [`Unhandled`](crate::RequestError::Unhandled), like a message that
//! it does not know.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::serve::{do_here, unknown, written};
use super::table::{Arrived, Errors, NoErrors, Written};
use crate::alarm::Alarm;
use crate::clock::Timestamp;
use crate::connection::Closed;
use crate::directive::Order;
use crate::error::Outcome;
use crate::forward::door::refused;
use crate::instance::StableInterface;
use crate::instance::admin::{Alarms, CarryOut, ListAlarms, SetAlarmIfAbsent, checked, checked_meta};
use crate::instance::job::Work;
use crate::instance::kind::InterfaceCore;
use crate::instance::stop::Stop;
use crate::quiet::Quiet;
use crate::store::{AlarmRow, Attempts, Epoch, InstanceName, MessageHeaders, Revision};
use crate::sync::Arc;
use crate::transport::Answering;

/// The name under which they cross; no message can have it.
pub(super) const CALL: &str = "@call";

/// About the most bytes of alarms in one answer. Written as JSON, and with a last alarm as large as one can be, they fit into a message.
const ALARM_BYTES: usize = 256 * 1024;

/// One operation.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Call {
    /// An order, in the headers and the body of the message that a directive would be.
    CarryOut { headers: MessageHeaders, body: String },
    /// Sets an alarm, unless there is one; the time in milliseconds since the epoch, the meta as JSON.
    SetAlarmIfAbsent { alarm: String, at: i64, meta: String },
    /// Lists alarms from an ID on.
    ListAlarms { from: String },
    /// Lets the instance leave memory.
    Stop,
}

impl Call {
    pub(crate) fn carry_out(order: &Order) -> Call {
        let post = order.clone().into_post();
        Call::CarryOut { headers: post.headers, body: text(&post.body) }
    }

    pub(crate) fn set_alarm_if_absent(SetAlarmIfAbsent { alarm, at, meta }: &SetAlarmIfAbsent) -> Call {
        Call::SetAlarmIfAbsent { alarm: alarm.clone(), at: at.as_millis(), meta: text(meta) }
    }

    /// Writes it, with an answer that is read as it was written.
    pub(crate) fn write<R: DeserializeOwned, E>(&self) -> Outcome<Written<R, E>, E> {
        self.write_with(|reply| serde_json::from_slice(reply))
    }

    /// Writes it; `read` reads the answer.
    pub(crate) fn write_with<R, E>(
        &self,
        read: fn(&[u8]) -> Result<R, serde_json::Error>,
    ) -> Outcome<Written<R, E>, E> {
        let body = serde_json::to_vec(self).expect("texts and numbers can be written as JSON");
        Ok(Written { message: CALL, key: None, body, read, read_error: NoErrors::read })
    }

    pub(crate) fn read_alarms(reply: &[u8]) -> Result<Alarms, serde_json::Error> {
        let told: ToldAlarms = serde_json::from_slice(reply)?;
        Ok(told.into_alarms())
    }
}

/// The body of an order, or the meta of an alarm: JSON, which is text.
fn text(json: &Bytes) -> String {
    String::from_utf8_lossy(json).into_owned()
}

/// Answers a call of another host.
pub(super) fn answer<I: StableInterface>(core: &Arc<InterfaceCore<I>>, arrived: Arrived<'_>) -> Answering {
    let call = match serde_json::from_slice(arrived.body) {
        Ok(call) => call,
        Err(error) => return unknown(core, format_args!("this operation of another host: {error}")),
    };
    match call {
        Call::CarryOut { headers, body } => match Order::read(&arrived.id.into(), &headers, &body.into()) {
            Ok(order) => match checked(order) {
                Ok(order) => perform(core, arrived, CarryOut(order)),
                Err(error) => refused(&error.into()),
            },
            Err(what) => unknown(core, format_args!("this operation of another host: {what}")),
        },
        Call::SetAlarmIfAbsent { alarm, at, meta } => match checked_meta(&alarm, meta.as_bytes()) {
            Ok(meta) => perform(core, arrived, SetAlarmIfAbsent { alarm, at: Timestamp::from_millis(at), meta }),
            Err(error) => refused(&error.into()),
        },
        Call::ListAlarms { from } => {
            let list = ListAlarms { from: from.into(), bytes: ALARM_BYTES };
            do_here(core, arrived, Quiet::new(list), |alarms| {
                written::<_, I::Error, NoErrors>(alarms.map(ToldAlarms::of)).encode()
            })
        }
        Call::Stop => perform(core, arrived, Stop(Closed::Stopped)),
    }
}

fn perform<I: StableInterface, W>(core: &Arc<InterfaceCore<I>>, arrived: Arrived<'_>, work: W) -> Answering
where
    W: Work<I>,
    W::Reply: Serialize,
{
    do_here(core, arrived, Quiet::new(work), |outcome| written::<_, I::Error, NoErrors>(outcome).encode())
}

/// Alarms of one instance on their way.
#[derive(Debug, Default, Serialize, Deserialize)]
struct ToldAlarms {
    interface: String,
    instance: String,
    alarms: Vec<ToldAlarm>,
    next: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ToldAlarm {
    id: String,
    due: i64,
    scheduled_at: i64,
    revision: (u64, u64),
    failed: u32,
    crashes: u32,
    started: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
    meta: String,
}

impl ToldAlarms {
    fn of((alarms, next): Alarms) -> ToldAlarms {
        let name = alarms.first().map(|alarm| alarm.row().name.clone());
        let told = |alarm: &Alarm| {
            let AlarmRow { id, due, scheduled_at, revision, attempts, meta, name: _ } = alarm.row();
            ToldAlarm {
                id: id.to_string(),
                due: due.as_millis(),
                scheduled_at: scheduled_at.as_millis(),
                revision: (revision.epoch.0, revision.counter),
                failed: attempts.failed,
                crashes: attempts.crashes,
                started: attempts.started,
                last_error: attempts.last_error.as_deref().map(str::to_owned),
                meta: text(meta),
            }
        };
        ToldAlarms {
            interface: name.as_ref().map(|name| name.interface.to_string()).unwrap_or_default(),
            instance: name.as_ref().map(|name| name.instance.to_string()).unwrap_or_default(),
            alarms: alarms.iter().map(told).collect(),
            next: next.map(|next| next.to_string()),
        }
    }

    fn into_alarms(self) -> Alarms {
        let name = InstanceName { interface: self.interface.into(), instance: self.instance.into() };
        let alarm = |told: ToldAlarm| {
            let (epoch, counter) = told.revision;
            Alarm::new(Arc::new(AlarmRow {
                name: name.clone(),
                id: told.id.into(),
                due: Timestamp::from_millis(told.due),
                scheduled_at: Timestamp::from_millis(told.scheduled_at),
                revision: Revision { epoch: Epoch(epoch), counter },
                attempts: Attempts {
                    failed: told.failed,
                    crashes: told.crashes,
                    started: told.started,
                    last_error: told.last_error.map(Arc::from),
                },
                meta: told.meta.into(),
            }))
        };
        (self.alarms.into_iter().map(alarm).collect(), self.next.map(Arc::from))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::pending;
    use std::time::Duration;

    use async_trait::async_trait;

    use super::*;
    use crate::error::{ContextError, RequestError};
    use crate::forward::wire::{Answer, Request};
    use crate::store::BoxError;
    use crate::sync::Mutex;
    use crate::transport::{Addressee, Door, Introduction, Running, Transport, Undelivered};
    use crate::{Host, MemoryStore};

    struct Thing;

    impl StableInterface for Thing {
        const NAME: &'static str = "thing";
        type Error = ContextError;
    }

    /// Knows the door that it was given, and nobody else.
    #[derive(Debug, Clone, Default)]
    struct Alone(Arc<Mutex<Option<Arc<dyn Door>>>>);

    #[async_trait]
    impl Transport for Alone {
        fn address(&self) -> Option<Arc<str>> {
            None
        }

        async fn open(&self, _: Introduction, door: Option<Arc<dyn Door>>) -> Result<Running, BoxError> {
            *self.0.lock() = door;
            Ok(Box::pin(pending()))
        }

        async fn send(&self, _: &Addressee, _: Bytes) -> Result<Bytes, Undelivered> {
            Err(Undelivered::NotSent("nobody is there".into()))
        }

        async fn close(&self) {}
    }

    #[tokio::test(start_paused = true)]
    async fn an_operation_that_this_release_does_not_know_is_unhandled_with_its_build_and_one_with_more_fields_is_done()
    {
        let transport = Alone::default();
        let mut host = Host::local(MemoryStore::new()).build("v7").transport(transport.clone());
        host.interface(|_| Thing).register().map(drop).unwrap();
        let _host = host.start().await.unwrap();
        let door = transport.0.lock().clone().unwrap();
        let answer = async |message: &str, body: &str| {
            let request = Request {
                interface: "thing",
                message,
                id: "a",
                given: Duration::from_secs(1),
                waits: None,
                callers: Vec::new(),
                key: None,
                since: None,
                sent_by: None,
                trace: None,
                body: body.as_bytes(),
            };
            let answer = door.answer(request.encode()).await;
            match Answer::decode(&answer).unwrap() {
                Answer::Reply(reply) => Ok(String::from_utf8(reply.to_vec()).unwrap()),
                Answer::Failed(told) => Err(told.into_error::<Infallible>()),
                Answer::Handler { .. } => panic!("no handler runs"),
            }
        };
        for (message, body) in [
            (CALL, r#"{"explode":{"at":7}}"#),
            (CALL, r#"{"carry_out":{"headers":[["do","explode"]],"body":""}}"#),
            (CALL, "no JSON"),
            ("@implode", "{}"),
            ("@connect", r#"{"from":"b","meta":null}"#),
        ] {
            let error = answer(message, body).await.unwrap_err();
            let RequestError::Unhandled(what) = &error else { panic!("{body}: {error}") };
            assert!(what.contains("on local, build v7, stable-interfaces 0."), "{what}");
        }
        let cancel =
            r#"{"carry_out":{"headers":[["do","cancel-alarm"],["alarm","x"],["why","it rains"]],"body":"","how":1}}"#;
        assert_eq!(answer(CALL, cancel).await.unwrap(), "true");
        let alarms = answer(CALL, r#"{"list_alarms":{"from":"","most":9}}"#).await.unwrap();
        assert!(alarms.contains(r#""alarms":[]"#), "{alarms}");
        assert_eq!(answer(CALL, r#""stop""#).await.unwrap(), "null");
    }
}
