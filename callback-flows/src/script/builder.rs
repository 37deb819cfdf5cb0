//! Scripts on their way into an application's flows.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use rhai::Engine;
use rhai::packages::{Package as _, StandardPackage};
use serde_json::Value;

use super::calls::{Call, CallCx, CallError};
use super::check::Known;
use super::dispatch::{self, Dispatch};
use super::drive::{Host, drive};
use super::functions::{self, Calls};
use super::http::{self, HttpRequest, HttpResponse};
use super::library::{Imports, Library, ScriptError, is_name, no_name};
use super::{names, run, start};
use crate::Flow;
use crate::flows::{FlowsBuilder, Prepare};

/// The operations of Rhai that one run of a script may take.
const MAX_OPERATIONS: u64 = 200_000;
/// The depth of calls of functions, and of expressions.
const MAX_CALLS: usize = 48;
const MAX_DEPTH: usize = 64;
/// The longest text, in bytes, and the most items of an array and fields of an object, those within it too.
const MAX_TEXT: usize = 256 * 1024;
const MAX_ITEMS: usize = 2_000;
/// The most variables, functions and imports of a script.
const MAX_VARIABLES: usize = 1_000;
const MAX_FUNCTIONS: usize = 500;
const MAX_IMPORTS: usize = 100;

/// Flows that are scripts: see the [module](super).
#[derive(Debug)]
pub struct ScriptFlows;

impl ScriptFlows {
    /// No scripts yet, and no functions of an application.
    pub fn builder() -> ScriptFlowsBuilder {
        ScriptFlowsBuilder {
            name: "script".into(),
            directories: Vec::new(),
            texts: BTreeMap::new(),
            calls: Calls::new(),
            dispatches: BTreeMap::new(),
            functions: Vec::new(),
            max_operations: MAX_OPERATIONS,
            invalid: None,
        }
    }
}

type Functions = Box<dyn FnOnce(&mut Engine) + Send>;

/// Scripts, and what they may call: [`ScriptFlows::builder`].
#[must_use = "scripts are registered by `register`"]
pub struct ScriptFlowsBuilder {
    name: String,
    directories: Vec<PathBuf>,
    texts: BTreeMap<String, Arc<str>>,
    calls: Calls,
    dispatches: BTreeMap<String, Arc<Dispatch>>,
    functions: Vec<Functions>,
    max_operations: u64,
    invalid: Option<ScriptError>,
}

impl std::fmt::Debug for ScriptFlowsBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScriptFlowsBuilder")
            .field("name", &self.name)
            .field("directories", &self.directories)
            .field("calls", &self.calls.keys())
            .finish_non_exhaustive()
    }
}

impl ScriptFlowsBuilder {
    /// The name of the flow whose input is a [`Script`](super::Script). Default: `script`.
    pub fn name(mut self, name: &str) -> ScriptFlowsBuilder {
        name.clone_into(&mut self.name);
        self
    }

    /// Adds the scripts of a directory: its files `*.rhai`. They are read anew for each flow that is started; a flow that was started keeps
    /// the text that it was started with.
    pub fn library(mut self, directory: impl Into<PathBuf>) -> ScriptFlowsBuilder {
        self.directories.push(directory.into());
        self
    }

    /// Adds a script that is a part of the program, such as by `include_str!`. It comes before a file of the same name.
    pub fn script(mut self, name: &str, text: &'static str) -> ScriptFlowsBuilder {
        if !is_name(name) {
            self.invalid.get_or_insert(ScriptError::new(format!("{name:?}"), no_name()));
        }
        self.texts.insert(name.into(), text.into());
        self
    }

    /// Lets scripts call a function that reaches outside: `mail(#{to: ..})`, or with dots `stripe.payment_intents.create(#{..})`, each with
    /// options as well, `#{ retry: 5, timeout: "20s" }`.
    ///
    /// Each call is a [step](crate::Step) of its name: it runs at least once, with the same [key](CallCx::idempotency_key) each time, and
    /// its answer is recorded. `call` is given the arguments as JSON, once for each attempt; an attempt that takes longer than its `timeout`
    /// is dropped. `retry` is the number of further attempts, 0 to 1,000 (default 5); `timeout` is for one attempt, more than 0 and at most an
    /// hour (default 30 s).
    pub fn call<F, Fut>(mut self, name: &str, call: F) -> ScriptFlowsBuilder
    where
        F: Fn(CallCx, Value) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Value, CallError>> + Send + 'static,
    {
        self.add(Call::new(name, call));
        self
    }

    fn add(&mut self, call: Call) {
        let name = call.name.clone();
        let is_part = |part: &str| rhai::is_valid_identifier(part);
        if !name.split('.').all(is_part) {
            let reason = "the name of a call is an identifier, or some with dots between them";
            self.invalid.get_or_insert(ScriptError::new(format!("{name:?}"), reason));
        }
        if self.calls.insert(name.to_string(), Arc::new(call)).is_some() {
            self.invalid.get_or_insert(ScriptError::new(format!("{name:?}"), "there are two calls of this name"));
        }
    }

    /// Lets scripts send requests, `http.get(url)`, `http.post(url, body, options)`, by this client. It sends them as they are, follows no
    /// redirects that would lose the body, and says [`retry`](CallError::retry) where there was no response.
    pub fn http<F, Fut>(mut self, client: F) -> ScriptFlowsBuilder
    where
        F: Fn(HttpRequest) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<HttpResponse, CallError>> + Send + 'static,
    {
        http::calls(client).for_each(|call| self.add(call));
        self
    }

    /// Lets scripts make a call and go on at once: [`Dispatch`].
    pub fn dispatch(mut self, dispatch: Dispatch) -> ScriptFlowsBuilder {
        let names = [&dispatch.constructor, &dispatch.method].into_iter().chain(&dispatch.fields);
        if let Some(name) = names.into_iter().find(|name| !rhai::is_valid_identifier(name)) {
            self.invalid.get_or_insert(ScriptError::new(format!("{name:?}"), "it cannot be the name of a function"));
        }
        self.dispatches.insert(dispatch.constructor.clone(), Arc::new(dispatch));
        self
    }

    /// Registers functions and types of the application with Rhai. They are to be functions of their arguments alone: what they give is not
    /// recorded. What reaches outside is a [`call`](Self::call).
    pub fn functions(mut self, register: impl FnOnce(&mut Engine) + Send + 'static) -> ScriptFlowsBuilder {
        self.functions.push(Box::new(register));
        self
    }

    /// The operations of Rhai that a run of a script may take; one that takes more has failed. Default: 200,000.
    pub fn max_operations(mut self, operations: u64) -> ScriptFlowsBuilder {
        self.max_operations = operations.max(1);
        self
    }

    /// Compiles and checks all scripts, and registers the flow.
    ///
    /// # Errors
    /// [`ScriptError`] says in which line of which script what is wrong, or which name cannot be.
    pub fn register(self, flows: &mut FlowsBuilder) -> Result<(), ScriptError> {
        if let Some(invalid) = self.invalid {
            return Err(invalid);
        }
        let calls = Arc::new(self.calls);
        for dispatch in self.dispatches.values() {
            if dispatch::call_of(&calls, dispatch).is_none() {
                let reason = format!("it makes the call `{}`, and there is none", dispatch.call_name());
                return Err(ScriptError::new(format!("`{}`", dispatch.constructor), reason));
            }
        }
        let engine = engine(&calls, &self.dispatches, self.functions);
        let library = Library::new(self.directories, self.texts, self.dispatches, Known::of(&engine));
        for name in library.names()? {
            library.set_of(&engine, &name)?;
        }
        let (name, max_operations) = (self.name, self.max_operations);
        let host = Arc::new(Host { name: name.as_str().into(), engine, library, calls, max_operations });
        let prepare = Prepare {
            prepare: Box::new({
                let (host, name) = (host.clone(), name.clone());
                move |input| start::prepare(&name, input, |script| host.library.set_of(&host.engine, script))
            }),
            is_same: start::is_same,
        };
        let code = move |flow: Flow, row: start::Row| drive(host.clone(), flow, row);
        flows.add_prepared(&name, code, prepare);
        Ok(())
    }

    /// Compiles and checks all scripts, as [`register`](Self::register) does, for a test of them.
    ///
    /// # Errors
    /// As [`register`](Self::register).
    pub fn check(self) -> Result<(), ScriptError> {
        self.register(&mut crate::Flows::builder())
    }
}

/// The engine that all scripts of an application run on: without a clock, random numbers, files and source made at run time.
fn engine(calls: &Arc<Calls>, dispatches: &BTreeMap<String, Arc<Dispatch>>, functions: Vec<Functions>) -> Engine {
    let mut engine = Engine::new_raw();
    StandardPackage::new().register_into_engine(&mut engine);
    engine.set_max_call_levels(MAX_CALLS);
    engine.set_max_expr_depths(MAX_DEPTH, MAX_DEPTH);
    engine.set_max_string_size(MAX_TEXT);
    engine.set_max_array_size(MAX_ITEMS);
    engine.set_max_map_size(MAX_ITEMS);
    engine.set_max_variables(MAX_VARIABLES);
    engine.set_max_functions(MAX_FUNCTIONS);
    engine.set_max_modules(MAX_IMPORTS);
    // As written, so that places are those of the text.
    engine.set_optimization_level(rhai::OptimizationLevel::None);
    engine.disable_symbol("eval").disable_symbol("Fn");
    engine.set_module_resolver(Imports);
    for register in functions {
        register(&mut engine);
    }
    names::register(&mut engine);
    functions::register(&mut engine, calls);
    dispatch::register(&mut engine, dispatches);
    engine.on_progress(|_| if run::may_go_on() { None } else { Some(rhai::Dynamic::UNIT) });
    engine
}
