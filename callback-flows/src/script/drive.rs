//! The flow that runs scripts: it performs what they ask for, and runs them again with one answer more.
//!
//! One script of a flow runs at a time, from its first run to its last. What it waits for, and the calls that any script has dispatched,
//! are operations of the ordinary engine and under way at once; each answer is taken in alone, in the order of the journal.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use parking_lot::Mutex;
use rhai::{Dynamic, Engine};
use serde_json::{Map, Value, json};
use stable_interfaces::Timestamp;

use super::calls::{Answered, begin, child_error};
use super::dispatch::{Dispatch, call_of};
use super::failure::{Place, file_of};
use super::functions::Calls;
use super::http::body_of;
use super::library::{Compiled, Library};
use super::metrics;
use super::run::{Answer, Ask, Asked, Dispatched, Ended, Instance, MAX_ASKED, Outcome, Runner};
use super::start::{FORMAT, RHAI, Row};
use super::value::{to_json, to_script};
use crate::blocked::{Blocked, BlockedKind};
use crate::callback::{NextRaw, Received};
use crate::engine::{BoxFuture, Kind, Ticket, timer_name};
use crate::flow::{Flow, FlowError, FlowResult};
use crate::hash::short_hash;
use crate::journal::Detail;
use crate::timer::Sleep;

/// The longest ID of a child that has that of its parent in it, in bytes.
const MAX_CHILD_ID: usize = 200;

/// All that the scripts of an application share.
pub(super) struct Host {
    /// The name of the flow.
    pub(super) name: Arc<str>,
    pub(super) engine: Engine,
    pub(super) library: Library,
    pub(super) calls: Arc<Calls>,
    pub(super) max_operations: u64,
}

/// An answer, by its receiver.
enum To {
    /// The script that runs, at this place of its record.
    Script(String, Answer),
    /// A script that begins with it.
    Next(Arc<Dispatch>, Answered),
}

/// One flow.
struct Drive {
    host: Arc<Host>,
    flow: Flow,
    set: Arc<Compiled>,
    /// The variables of all scripts.
    args: Vec<(String, Dynamic)>,
    context: Map<String, Value>,
    /// The callbacks, with their URLs, that scripts have left open.
    callbacks: Vec<(Arc<Ticket>, String)>,
    /// The number of scripts that have begun.
    begun: u32,
    /// Operations that may still be asked for.
    left: u32,
    under_way: FuturesUnordered<BoxFuture<To>>,
}

/// Blocks the flow.
async fn blocked<T>(flow: &Flow, why: Blocked) -> T {
    flow.shared().fail(why);
    std::future::pending().await
}

/// Runs the scripts of a flow.
pub(super) async fn drive(host: Arc<Host>, flow: Flow, row: Row) -> FlowResult<Value> {
    let row = if row.format == 0 { stored(&host, &flow, row).await? } else { row };
    if row.format > FORMAT {
        let message = format!("its scripts were stored in the format {} by a newer version of this crate", row.format);
        return blocked(&flow, Blocked::new(BlockedKind::UnknownVersion, message)).await;
    }
    let set = match host.library.set_from(&host.engine, &row.sources) {
        Ok(set) if *set.hash == *row.hash => set,
        Ok(_) => {
            let message = "its scripts are not those that it was started with: their hash is another".to_owned();
            return blocked(&flow, Blocked::new(BlockedKind::Unreadable, message)).await;
        }
        Err(error) => {
            let message = format!("{error}: it was stored for Rhai {}, and this is {RHAI}", row.rhai);
            return blocked(&flow, Blocked::new(BlockedKind::Unreadable, message)).await;
        }
    };
    let args: Vec<_> = row.args.iter().map(|(name, value)| (name.clone(), to_script(value))).collect();
    let drive = Drive {
        host,
        flow,
        set,
        args,
        context: Map::new(),
        callbacks: Vec::new(),
        begun: 0,
        left: MAX_ASKED,
        under_way: FuturesUnordered::new(),
    };
    drive.run_all((*row.script).into()).await
}

/// The input of a flow that another one has begun, with its sources: as they are now, from now on.
async fn stored(host: &Arc<Host>, flow: &Flow, row: Row) -> FlowResult<Row> {
    let read =
        || host.library.set_of(&host.engine, &row.script).map(|set| Row::new(&row.script, row.args.clone(), &set));
    let read = flow.step("sources").run(|_| std::future::ready(read().map_err(crate::step::Fatal::new))).await;
    Ok(read?)
}

impl Drive {
    async fn run_all(mut self, main: Arc<str>) -> FlowResult<Value> {
        let mut result = Value::Null;
        let mut waiting = VecDeque::from([self.instance(main, Vec::new())]);
        while let Some(instance) = waiting.pop_front() {
            let is_main = instance.number == 0;
            let value = self.script(Arc::new(Mutex::new(instance)), &mut waiting).await?;
            if is_main {
                result = value;
            }
            while waiting.is_empty() && !self.under_way.is_empty() {
                let Some(to) = self.under_way.next().await else { break };
                self.take_in(to, &mut waiting);
            }
        }
        Ok(if result.is_null() { Value::Object(self.context) } else { result })
    }

    fn instance(&mut self, script: Arc<str>, variables: Vec<(String, Dynamic)>) -> Instance {
        let number = self.begun;
        self.begun += 1;
        let variables = self.args.iter().cloned().chain(variables).collect();
        Instance { number, script, variables, ..Instance::default() }
    }

    /// Notes the script that an answer begins.
    fn take_in(&mut self, to: To, waiting: &mut VecDeque<Instance>) {
        let To::Next(dispatch, answered) = to else { return };
        let [response, error] = dispatch.scripts_after();
        let (script, name, value) = match answered {
            Answered::Ok(value) => (response, "parsed_data", to_script(&value)),
            Answered::Error(said) => (error, "parsed_error", said.to_script()),
        };
        let source = ("source".to_owned(), dispatch.source_name().into());
        let instance = self.instance(script.into(), vec![(name.to_owned(), value), source]);
        waiting.push_back(instance);
    }

    /// Runs one script to its end, and gives its value.
    async fn script(&mut self, instance: Arc<Mutex<Instance>>, waiting: &mut VecDeque<Instance>) -> FlowResult<Value> {
        {
            let mut instance = instance.lock();
            instance.context.clone_from(&self.context);
            instance.callbacks = std::mem::take(&mut self.callbacks);
        }
        loop {
            let outcome = self.run(&instance);
            let Outcome { ended, context, asked, dispatched, .. } = outcome;
            let name = instance.lock().script.clone();
            match ended {
                Ended::Asked | Ended::Done(_) => {}
                Ended::Failed(said) => {
                    self.say_over(&instance, "failed");
                    return Err(FlowError::new(said));
                }
                Ended::Blocked(why) => return blocked(&self.flow, why).await,
            }
            let number = instance.lock().number;
            for dispatched in dispatched {
                let future = self.dispatched(number, dispatched);
                self.under_way.push(future);
            }
            if let Ended::Done(value) = ended {
                let value = match to_json(&value) {
                    Ok(value) => value,
                    Err(_) if number > 0 => Value::Null,
                    Err(error) => {
                        self.say_over(&instance, "failed");
                        return Err(FlowError::new(format!("{}: its result: {error}", file_of(&name))));
                    }
                };
                self.say_over(&instance, "succeeded");
                self.context = context;
                let mut instance = instance.lock();
                self.callbacks = std::mem::take(&mut instance.callbacks);
                self.callbacks.extend(instance.record.take_callbacks());
                return Ok(value);
            }
            for asked in asked {
                let future = self.perform(&self.flow, number, asked, false);
                self.under_way.push(future);
            }
            // Scripts whose answer comes meanwhile have their turn when this one is over.
            loop {
                match self.under_way.next().await {
                    Some(To::Script(path, answer)) => {
                        instance.lock().record.answer(&path, answer);
                        break;
                    }
                    Some(to) => self.take_in(to, waiting),
                    None => {
                        self.say_over(&instance, "failed");
                        return Err(FlowError::new(format!("{}: it waits for nothing", file_of(&name))));
                    }
                }
            }
        }
    }

    /// Counts a script that has ended.
    fn say_over(&self, instance: &Mutex<Instance>, outcome: &'static str) {
        let now = instance.lock();
        if !self.flow.is_replaying() {
            metrics::script_over(&now.script, outcome, now.runs, now.record.len());
        }
    }

    /// Runs a script once, and registers what it has to undo.
    fn run(&mut self, shared: &Arc<Mutex<Instance>>) -> Outcome {
        let mut instance = shared.lock();
        let outcome = run_once(&self.host, &self.set, &self.flow, &mut instance, &mut self.left, None);
        let known = instance.undos;
        instance.undos = known.max(outcome.undos.len());
        drop(instance);
        for (number, place) in outcome.undos.iter().enumerate().skip(known) {
            let place = place.in_name();
            self.flow.shared().note(self.flow.scope(), Kind::Undo, &place);
            let (host, set, shared) = (self.host.clone(), self.set.clone(), shared.clone());
            self.flow.shared().push_undo(Box::new(move |flow| Box::pin(undo(host, set, shared, number, flow))));
        }
        outcome
    }

    fn dispatched(&self, number: u32, dispatched: Dispatched) -> BoxFuture<To> {
        let Dispatched { path, place, dispatch, arguments, options } = dispatched;
        let Some(call) = call_of(&self.host.calls, &dispatch) else {
            unreachable!("a dispatching function is registered with its call");
        };
        let (key, at) = (key_of(number, &path, &place), place.to_string().into());
        let answer = begin(&self.flow, (call, &key, at), arguments, options, false);
        Box::pin(async move { To::Next(dispatch, answer.await) })
    }

    fn perform(&self, flow: &Flow, number: u32, asked: Asked, is_undo: bool) -> BoxFuture<To> {
        let path = asked.path.clone();
        let answer = perform(&self.host, &self.set, flow, number, asked, is_undo);
        Box::pin(async move { To::Script(path, answer.await) })
    }
}

/// Runs a script once, and takes what it has asked for anew off `left`.
fn run_once(
    host: &Host,
    set: &Arc<Compiled>,
    flow: &Flow,
    instance: &mut Instance,
    left: &mut u32,
    undo: Option<usize>,
) -> Outcome {
    let before = instance.record.len();
    let runner = Runner { engine: &host.engine, max_operations: host.max_operations, compiled: set };
    let outcome = runner.run(flow, instance, *left, undo);
    *left -= u32::try_from(instance.record.len() - before).unwrap_or(*left).min(*left);
    outcome
}

/// The key of an operation: the number of its script and its place in the record, and, for whoever reads it, where it is in the text.
fn key_of(number: u32, path: &str, place: &Place) -> String {
    format!("{} ({number}.{path})", place.in_name())
}

/// Performs what a script has asked for.
fn perform(
    host: &Arc<Host>,
    set: &Arc<Compiled>,
    flow: &Flow,
    number: u32,
    asked: Asked,
    is_undo: bool,
) -> BoxFuture<Answer> {
    let Asked { path, place, ask } = asked;
    let (key, at): (_, Arc<str>) = (key_of(number, &path, &place), place.to_string().into());
    match ask {
        Ask::Call { call, arguments, options } => {
            let answered = begin(flow, (call, &key, at), arguments, options, is_undo);
            Box::pin(async move {
                match answered.await {
                    Answered::Ok(value) => Answer::Value(to_script(&value)),
                    Answered::Error(error) => Answer::Error(error.to_script()),
                }
            })
        }
        Ask::Sleep(time) => {
            let sleep = timer(flow, &timer_name(time), &key, &at, flow.now() + time);
            Box::pin(async move {
                sleep.await;
                Answer::Value(Dynamic::UNIT)
            })
        }
        Ask::Next { callback, limit, is_whole } => {
            callback.show_at(at.clone());
            let mut limit = limit.map(|limit| timer(flow, "next", &key, &at, flow.now() + limit));
            Box::pin(async move {
                let mut next = NextRaw(&callback);
                let received = std::future::poll_fn(|task| match Pin::new(&mut next).poll(task) {
                    Poll::Ready(received) => Poll::Ready(Some(received)),
                    Poll::Pending => match limit.as_mut().map(|limit| Pin::new(limit).poll(task)) {
                        Some(Poll::Ready(())) => Poll::Ready(None),
                        _ => Poll::Pending,
                    },
                })
                .await;
                Answer::Value(received.map_or(Dynamic::UNIT, |received| to_script(&message(&received, is_whole))))
            })
        }
        Ask::Child { script, arguments } => {
            let row = match host.library.part_of(set, &script) {
                Ok(part) => Row::new(&script, arguments, &part),
                Err(error) => return Box::pin(std::future::ready(Answer::Error(error.to_string().into()))),
            };
            let (_, id) = crate::flows::parts_of(&flow.shared().identity);
            let mut child_id = format!("{id}~{number}.{path}");
            if child_id.len() > MAX_CHILD_ID {
                child_id = short_hash(child_id.as_bytes());
            }
            let mut child = flow.spawn(&host.name, &child_id, &row);
            child.show_at(at);
            Box::pin(async move {
                match child.result::<Value>().await {
                    Ok(value) => Answer::Value(to_script(&value)),
                    Err(error) => Answer::Error(child_error(&error).to_script()),
                }
            })
        }
    }
}

fn timer(flow: &Flow, name: &str, key: &str, at: &Arc<str>, due: Timestamp) -> Sleep {
    let ticket = flow.shared().claim(flow.scope(), Kind::Timer, name, Some(key), Detail::Due(due));
    ticket.show_at(at.clone());
    Sleep::new(ticket)
}

/// A message as a script has it: its body, or all of it.
fn message(received: &Received, is_whole: bool) -> Value {
    let body = body_of(received.body());
    if !is_whole {
        return body;
    }
    let headers = received.headers().map(|(name, value)| (name.to_ascii_lowercase(), value.into()));
    let headers = headers.collect::<Map<_, _>>();
    json!({ "id": received.id(), "at": received.at().as_millis(), "headers": headers, "body": body })
}

/// Calls a closure that a script has registered to undo something, until all that it asks for has been done.
async fn undo(host: Arc<Host>, set: Arc<Compiled>, instance: Arc<Mutex<Instance>>, number: usize, flow: Flow) {
    let flow = flow.branch("undo");
    let mut left = MAX_ASKED;
    let mut under_way = FuturesUnordered::new();
    loop {
        let outcome = run_once(&host, &set, &flow, &mut instance.lock(), &mut left, Some(number));
        let of = instance.lock().number;
        match outcome.ended {
            Ended::Done(_) => return,
            Ended::Asked => {}
            Ended::Failed(said) => {
                let message = format!("what its script has to undo has failed: {said}");
                return blocked(&flow, Blocked::new(BlockedKind::StepFailed, message)).await;
            }
            Ended::Blocked(why) => return blocked(&flow, why).await,
        }
        for asked in outcome.asked {
            let path = asked.path.clone();
            let answer = perform(&host, &set, &flow, of, asked, true);
            under_way.push(async move { (path, answer.await) });
        }
        let Some((path, answer)) = under_way.next().await else {
            let why = Blocked::new(BlockedKind::NotDurable, "what its script has to undo waits for nothing".into());
            return blocked(&flow, why).await;
        };
        instance.lock().record.answer(&path, answer);
    }
}
