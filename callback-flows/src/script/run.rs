//! One run of a script, from its top: what it asks is looked up in its record, and the first question without an answer ends it.
//!
//! A run is a function of the script, its variables, the context that it began with, and its record. It happens within one poll of the
//! flow's code, on one thread, where the host functions find it in a thread-local. Once it has asked, `on_progress` ends it,
//! whatever Rhai makes of the error that the asking function has returned; and every host function refuses, so nothing that it still
//! does counts.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

use rhai::{AST, Dynamic, Engine, FnPtr, NativeCallContext, Position, Scope};
use serde_json::{Map, Value};

use super::calls::{Call, Options};
use super::dispatch::Dispatch;
use super::failure::{Place, Thrown, describe, file_of, terminated, thrown};
use super::library::Compiled;
use super::value::size;
use crate::blocked::{Blocked, BlockedKind};
use crate::engine::Ticket;
use crate::flow::Flow;
use crate::hash::hash_of;

/// The most operations that the scripts of a flow may ask for.
pub(super) const MAX_ASKED: u32 = 500;
/// The most that the context of a flow may have, in bytes.
const MAX_CONTEXT_BYTES: usize = 256 * 1024;

/// Something that a script may ask for, and has to wait for.
pub(super) enum Ask {
    Call {
        call: Arc<Call>,
        arguments: Value,
        options: Options,
    },
    Sleep(std::time::Duration),
    /// The next message of a callback: its body, or all of it.
    Next {
        callback: Arc<Ticket>,
        limit: Option<std::time::Duration>,
        is_whole: bool,
    },
    Child {
        script: Arc<str>,
        arguments: Map<String, Value>,
    },
}

/// A question of a script that has no answer yet.
pub(super) struct Asked {
    /// The place of the question in the record.
    pub(super) path: String,
    pub(super) place: Place,
    pub(super) ask: Ask,
}

/// A call whose answer another script is to have.
pub(super) struct Dispatched {
    pub(super) path: String,
    pub(super) place: Place,
    pub(super) dispatch: Arc<Dispatch>,
    pub(super) arguments: Value,
    pub(super) options: Options,
}

/// The answer to a question.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Value(Dynamic),
    /// The script is to catch this.
    Error(Dynamic),
    /// A callback that the script has opened; without the ticket it is closed.
    Callback(Option<Arc<Ticket>>, String),
}

/// A question that was asked, and its answer once there is one.
#[derive(Debug)]
struct Recorded {
    what: Box<str>,
    hash: u64,
    answer: Option<Answer>,
}

/// All that a script has asked, by its place in the script: `3`, and within branches of the `all` there `3.0.1`.
#[derive(Debug, Default)]
pub(super) struct Record(BTreeMap<String, Recorded>);

impl Record {
    pub(super) fn answer(&mut self, path: &str, answer: Answer) {
        if let Some(recorded) = self.0.get_mut(path) {
            recorded.answer = Some(answer);
        }
    }

    /// The callbacks that its script leaves open, which are not its own from here on.
    pub(super) fn take_callbacks(&mut self) -> impl Iterator<Item = (Arc<Ticket>, String)> {
        self.0.values_mut().filter_map(|recorded| match &mut recorded.answer {
            Some(Answer::Callback(ticket, url)) => Some((ticket.take()?, url.clone())),
            _ => None,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// One script of a flow, from its beginning to its end, over all its runs.
#[derive(Default)]
pub(super) struct Instance {
    /// The number among the scripts of the flow, 0 for the main one.
    pub(super) number: u32,
    pub(super) script: Arc<str>,
    /// The variables that it begins with.
    pub(super) variables: Vec<(String, Dynamic)>,
    /// The context as it was when it began.
    pub(super) context: Map<String, Value>,
    pub(super) record: Record,
    /// The callbacks, with their URLs, that scripts before it have left open and that it has not asked for.
    pub(super) callbacks: Vec<(Arc<Ticket>, String)>,
    /// The number of things that it has said in an earlier run, by the branches that it was said in.
    pub(super) said: BTreeMap<String, u32>,
    /// The closures to undo something that the flow knows of.
    pub(super) undos: usize,
    pub(super) runs: u32,
}

/// The end of a run.
pub(super) enum Ended {
    Done(Dynamic),
    Failed(String),
    /// The script waits for answers.
    Asked,
    Blocked(Blocked),
}

/// All that came of a run.
pub(super) struct Outcome {
    pub(super) ended: Ended,
    pub(super) context: Map<String, Value>,
    pub(super) asked: Vec<Asked>,
    pub(super) dispatched: Vec<Dispatched>,
    /// The places of all closures that undo something, in the order in which they were registered.
    pub(super) undos: Vec<Place>,
}

/// The reason why a run goes no further.
enum Stop {
    Asked,
    Failed(String),
    Blocked(Blocked),
}

/// A closure that undoes something, and what it needs to be called.
#[allow(deprecated, reason = "marked so because it may change; the version of Rhai is pinned")]
struct Undo {
    closure: FnPtr,
    context: rhai::NativeCallContextStore,
    place: Place,
}

/// A run that is under way.
pub(super) struct Run {
    pub(super) flow: Flow,
    pub(super) compiled: Arc<Compiled>,
    pub(super) context: Map<String, Value>,
    record: Record,
    callbacks: Vec<(Arc<Ticket>, String)>,
    /// The branch that runs: a prefix of paths, and the number of the next question in it.
    branch: String,
    next: u32,
    /// Operations that the flow may still ask for.
    left: u32,
    asked: Vec<Asked>,
    dispatched: Vec<Dispatched>,
    /// The number of questions of this run that wait for an answer.
    pending: usize,
    stop: Option<Stop>,
    saying: BTreeMap<String, u32>,
    said: BTreeMap<String, u32>,
    undos: Vec<Undo>,
    is_undo: bool,
}

thread_local! {
    /// The run on this thread.
    static RUN: RefCell<Option<Run>> = const { RefCell::new(None) };
    /// The number of operations of Rhai that it may still take.
    static LEFT: Cell<u64> = const { Cell::new(0) };
    /// The run is to end.
    static IS_OVER: Cell<bool> = const { Cell::new(false) };
}

/// Tells whether the run on this thread is to go on, at each operation of Rhai.
pub(super) fn may_go_on() -> bool {
    let left = LEFT.get();
    LEFT.set(left.saturating_sub(1));
    left > 0 && !IS_OVER.get()
}

/// Lets go of a run that a panic has ended.
struct Cleared;

impl Drop for Cleared {
    fn drop(&mut self) {
        RUN.take();
    }
}

/// Something that can be run: the engine, and how many operations of Rhai a run may take.
pub(super) struct Runner<'a> {
    pub(super) engine: &'a Engine,
    pub(super) max_operations: u64,
    pub(super) compiled: &'a Arc<Compiled>,
}

impl Runner<'_> {
    /// Runs a script from its top, and with `undo` then the closure that undoes something of this number. `left` is the number of
    /// operations that the flow may still ask for.
    pub(super) fn run(&self, flow: &Flow, instance: &mut Instance, left: u32, undo: Option<usize>) -> Outcome {
        instance.runs += 1;
        let Some(script) = self.compiled.script(&instance.script) else {
            // The set of scripts is closed when it is stored.
            let message = format!("its script `{}` is not among those that it has stored", instance.script);
            let ended = Ended::Blocked(Blocked::new(BlockedKind::Unreadable, message));
            return Outcome::of(ended);
        };
        let mut scope = Scope::new();
        for (name, value) in &instance.variables {
            scope.push_dynamic(name.as_str(), value.clone());
        }
        let run = Run {
            flow: flow.clone(),
            compiled: self.compiled.clone(),
            context: instance.context.clone(),
            record: std::mem::take(&mut instance.record),
            callbacks: std::mem::take(&mut instance.callbacks),
            branch: String::new(),
            next: 0,
            left,
            asked: Vec::new(),
            dispatched: Vec::new(),
            pending: 0,
            stop: None,
            saying: BTreeMap::new(),
            said: std::mem::take(&mut instance.said),
            undos: Vec::new(),
            is_undo: false,
        };
        let cleared = Cleared;
        RUN.set(Some(run));
        let mut ended = self.guarded(&instance.script, || self.evaluate(&mut scope, script.ast()));
        if let Some(undo) = undo {
            ended = self.undo(&instance.script, undo);
        }
        let run = RUN.take().expect("nobody else takes it");
        drop(cleared);
        (instance.record, instance.callbacks, instance.said) = (run.record, run.callbacks, run.said);
        let undos = run.undos.into_iter().map(|undo| undo.place).collect();
        Outcome { ended, context: run.context, asked: run.asked, dispatched: run.dispatched, undos }
    }

    fn evaluate(&self, scope: &mut Scope<'_>, ast: &AST) -> Result<Dynamic, Thrown> {
        self.engine.eval_ast_with_scope::<Dynamic>(scope, ast)
    }

    /// Calls a closure that the script has registered, whatever the script has come to.
    fn undo(&self, script: &str, number: usize) -> Ended {
        let undo = with(|run| {
            run.stop = None;
            run.asked.clear();
            run.pending = 0;
            (run.branch, run.next, run.is_undo) = (format!("undo{number}."), 0, true);
            (number < run.undos.len()).then(|| run.undos.swap_remove(number))
        });
        let Some(undo) = undo else {
            let message = format!("{}: the script does not register again what undoes something", file_of(script));
            return Ended::Blocked(Blocked::new(BlockedKind::Differs, message));
        };
        let Undo { closure, context, .. } = undo;
        #[allow(deprecated, reason = "marked so because it may change; the version of Rhai is pinned")]
        let context = context.create_context(self.engine);
        self.guarded(script, || closure.call_within_context::<Dynamic>(&context, ()))
    }

    fn guarded(&self, script: &str, run: impl FnOnce() -> Result<Dynamic, Thrown>) -> Ended {
        LEFT.set(self.max_operations + 1);
        IS_OVER.set(false);
        let result = run();
        let is_exhausted = LEFT.get() == 0;
        IS_OVER.set(false);
        let file = file_of(script);
        match with(|run| run.stop.take()) {
            Some(Stop::Asked) => Ended::Asked,
            Some(Stop::Failed(said)) => Ended::Failed(said),
            Some(Stop::Blocked(why)) => Ended::Blocked(why),
            None if is_exhausted => {
                let instead = format!("it took more than {} operations in one run", self.max_operations);
                let error = *result.err().unwrap_or_else(|| terminated(Position::NONE));
                Ended::Failed(describe(&file, error, Some(&instead)))
            }
            None => match result {
                Ok(value) => Ended::Done(value),
                Err(error) => Ended::Failed(describe(&file, *error, None)),
            },
        }
    }
}

impl Outcome {
    fn of(ended: Ended) -> Outcome {
        let (asked, dispatched, undos) = (Vec::new(), Vec::new(), Vec::new());
        Outcome { ended, context: Map::new(), asked, dispatched, undos }
    }
}

/// Does something with the run on this thread.
fn with<T>(run: impl FnOnce(&mut Run) -> T) -> T {
    RUN.with_borrow_mut(|now| run(now.as_mut().expect("host functions are called within runs alone")))
}

/// Does something with the run on this thread, for a host function that is called at this place.
///
/// # Errors
/// The run has ended, or that of `run`, at the place of the call.
pub(super) fn in_run<T>(
    context: &NativeCallContext<'_>,
    run: impl FnOnce(&mut Run) -> Result<T, String>,
) -> Result<T, Thrown> {
    if IS_OVER.get() {
        return Err(terminated(context.call_position()));
    }
    with(run).map_err(|text| thrown(context, text))
}

/// The scripts of the flow whose run is on this thread.
pub(super) fn compiled() -> Option<Arc<Compiled>> {
    RUN.with_borrow(|run| run.as_ref().map(|run| run.compiled.clone()))
}

/// Says something once, over all runs: `say` is called unless it was said in an earlier one.
pub(super) fn say(say: impl FnOnce(&Flow) -> Result<(), String>) -> Result<(), String> {
    if IS_OVER.get() {
        return Ok(());
    }
    with(|run| {
        let saying = run.saying.entry(run.branch.clone()).or_default();
        *saying += 1;
        let said = run.said.entry(run.branch.clone()).or_default();
        if *saying <= *said {
            return Ok(());
        }
        *said = *saying;
        say(&run.flow)
    })
}

impl Run {
    fn stop(&mut self, stop: Stop) {
        self.stop.get_or_insert(stop);
        IS_OVER.set(true);
    }

    /// The path of the next question, and the answer to it if it was asked before. `Err` if it was another question then, or one too many.
    fn look_up(&mut self, place: &Place, what: &str, hash: u64) -> Result<(String, Option<Option<Answer>>), ()> {
        let path = format!("{}{}", self.branch, self.next);
        self.next += 1;
        if let Some(recorded) = self.record.0.get(&path) {
            if *recorded.what == *what && recorded.hash == hash {
                return Ok((path, Some(recorded.answer.clone())));
            }
            let asks =
                if *recorded.what == *what { format!("`{what}` with other arguments") } else { format!("`{what}`") };
            let message = format!(
                "{place}: it asks for {asks} where its record has `{}`: what it asks is to follow from its answers alone",
                recorded.what
            );
            self.stop(Stop::Blocked(Blocked::new(BlockedKind::Differs, message)));
            return Err(());
        }
        let Some(left) = self.left.checked_sub(1) else {
            let message = format!("{place}: it asks for more than {MAX_ASKED} operations");
            self.stop(Stop::Failed(message));
            return Err(());
        };
        self.left = left;
        Ok((path, None))
    }

    fn record(&mut self, path: &str, what: &str, hash: u64, answer: Option<Answer>) {
        self.record.0.insert(path.to_owned(), Recorded { what: what.into(), hash, answer });
    }
}

/// Hands a question of a script its answer, or ends the run.
pub(super) fn ask(
    context: &NativeCallContext<'_>,
    what: &str,
    key: &Value,
    ask: impl FnOnce(&Run) -> Result<Ask, String>,
) -> Result<Dynamic, Thrown> {
    let place = Place::of(context);
    let answer = in_run(context, |run| {
        let hash = hash_of(key.to_string().as_bytes());
        let Ok((path, known)) = run.look_up(&place, what, hash) else { return Ok(None) };
        match known {
            Some(Some(answer)) => return Ok(Some(answer)),
            Some(None) => {}
            None => {
                let ask = ask(run)?;
                run.record(&path, what, hash, None);
                run.asked.push(Asked { path, place, ask });
            }
        }
        run.pending += 1;
        run.stop(Stop::Asked);
        Ok(None)
    })?;
    match answer {
        Some(Answer::Value(value)) => Ok(value),
        Some(Answer::Error(error)) => Err(rhai::EvalAltResult::ErrorRuntime(error, context.call_position()).into()),
        Some(Answer::Callback(..)) | None => Err(terminated(context.call_position())),
    }
}

/// Hands a question its answer that needs no waiting: it is the same in all runs.
pub(super) fn at_once(
    context: &NativeCallContext<'_>,
    what: &str,
    key: &Value,
    answer: impl FnOnce(&mut Run, &str, &Place) -> Result<Answer, String>,
) -> Result<Answer, Thrown> {
    let place = Place::of(context);
    let answer = in_run(context, |run| {
        let hash = hash_of(key.to_string().as_bytes());
        let Ok((path, known)) = run.look_up(&place, what, hash) else { return Ok(None) };
        if let Some(known) = known {
            return Ok(known);
        }
        let answer = answer(run, &path, &place)?;
        run.record(&path, what, hash, Some(answer.clone()));
        Ok(Some(answer))
    })?;
    answer.ok_or_else(|| terminated(context.call_position()))
}

impl Run {
    /// Has a call made whose answer another script is to have.
    pub(super) fn dispatch(&mut self, dispatched: Dispatched) -> Result<(), String> {
        if self.is_undo {
            return Err("what undoes something cannot dispatch: call it, and wait for its answer".into());
        }
        self.dispatched.push(dispatched);
        Ok(())
    }

    /// Opens a callback, or goes on with that of the name which a script before this one has left open.
    pub(super) fn open(&mut self, name: &str, ticket: impl FnOnce(&Flow) -> Ticket) -> Result<Answer, String> {
        let left_open = |(ticket, _): &(Arc<Ticket>, String)| crate::engine::is_callback_named(ticket.key(), name);
        if let Some(at) = self.callbacks.iter().position(left_open) {
            let (ticket, url) = self.callbacks.swap_remove(at);
            return Ok(Answer::Callback(Some(ticket), url));
        }
        let is_open = self.record.0.values().any(|recorded| {
            let is_of = |ticket: &Arc<Ticket>| crate::engine::is_callback_named(ticket.key(), name);
            matches!(&recorded.answer, Some(Answer::Callback(Some(ticket), _)) if is_of(ticket))
        });
        if is_open {
            return Err(format!(
                "the callback {name:?} is open already: close it first, or give this one another name"
            ));
        }
        let ticket = ticket(&self.flow);
        let url = if self.flow.shared().urls.is_some() { self.flow.shared().url(ticket.key()) } else { String::new() };
        Ok(Answer::Callback(Some(Arc::new(ticket)), url))
    }

    /// The ticket of a callback that was opened at this path, if it is still open.
    pub(super) fn callback(&self, path: &str) -> Option<Arc<Ticket>> {
        match &self.record.0.get(path)?.answer {
            Some(Answer::Callback(ticket, _)) => ticket.clone(),
            _ => None,
        }
    }

    /// Closes the callback that was opened at this path.
    pub(super) fn close(&mut self, path: &str) {
        if let Some(Answer::Callback(ticket, _)) = self.record.0.get_mut(path).and_then(|it| it.answer.as_mut()) {
            *ticket = None;
        }
    }

    /// Tells whether a question of this name waits for its answer.
    pub(super) fn is_awaited(&self, what: &str) -> bool {
        self.record.0.values().any(|recorded| recorded.answer.is_none() && *recorded.what == *what)
    }

    /// The path that the next question will have.
    pub(super) fn next_path(&self) -> String {
        format!("{}{}", self.branch, self.next)
    }

    /// Sets a value of the context.
    pub(super) fn set_context(&mut self, key: &str, value: Value) -> Result<(), String> {
        let old = self.context.insert(key.to_owned(), value);
        let bytes = self.context.iter().map(|(name, value)| name.len() + size(value)).sum::<usize>();
        if bytes > MAX_CONTEXT_BYTES {
            match old {
                Some(old) => drop(self.context.insert(key.to_owned(), old)),
                None => drop(self.context.remove(key)),
            }
            return Err(format!("the context would have {bytes} bytes, and may have {MAX_CONTEXT_BYTES}"));
        }
        Ok(())
    }
}

/// Registers a closure that undoes something.
pub(super) fn on_undo(context: &NativeCallContext<'_>, closure: FnPtr) -> Result<(), Thrown> {
    #[allow(deprecated, reason = "marked so because it may change; the version of Rhai is pinned")]
    let stored = context.store_data();
    let place = Place::of(context);
    in_run(context, |run| {
        if run.is_undo {
            return Err("what undoes something has nothing to undo".into());
        }
        run.undos.push(Undo { closure, context: stored, place });
        Ok(())
    })
}

/// Calls each closure up to its first question without an answer, and hands out their results when all have one.
pub(super) fn all(context: &NativeCallContext<'_>, closures: Vec<FnPtr>) -> Result<Dynamic, Thrown> {
    let (path, branch, next, pending) = in_run(context, |run| {
        let path = run.next_path();
        run.next += 1;
        Ok((path, std::mem::take(&mut run.branch), run.next, std::mem::take(&mut run.pending)))
    })?;
    let mut results = Vec::with_capacity(closures.len());
    let mut error = None;
    for (number, closure) in closures.iter().enumerate() {
        with(|run| (run.branch, run.next) = (format!("{path}.{number}."), 0));
        match closure.call_within_context::<Dynamic>(context, ()) {
            Ok(value) => results.push(value),
            Err(thrown) => drop(error.get_or_insert(thrown)),
        }
        // One that waits lets the next one ask. Any other reason to stop holds.
        let goes_on = with(|run| match run.stop.take() {
            Some(Stop::Asked) => {
                IS_OVER.set(false);
                true
            }
            Some(other) => {
                run.stop = Some(other);
                false
            }
            None => true,
        });
        if !goes_on || LEFT.get() == 0 {
            return Err(terminated(context.call_position()));
        }
    }
    let is_waiting = with(|run| {
        (run.branch, run.next) = (branch, next);
        let is_waiting = run.pending > 0;
        run.pending += pending;
        if is_waiting {
            run.stop(Stop::Asked);
        }
        is_waiting
    });
    match error {
        _ if is_waiting => Err(terminated(context.call_position())),
        Some(error) => Err(error),
        None => Ok(results.into()),
    }
}
