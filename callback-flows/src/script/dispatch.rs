//! Calls that a script does not wait for: their answer is what another script begins with.

use std::collections::BTreeMap;
use std::sync::Arc;

use rhai::{Dynamic, Engine, ImmutableString, NativeCallContext};
use serde_json::{Map, Value};

use super::calls::{Call, Options};
use super::failure::{Place, Thrown, thrown};
use super::functions::Calls;
use super::run::{Answer, Dispatched, at_once};
use super::value::to_json;

/// A function with which scripts make a call and go on at once: `new_payment_intent().amount(2000).currency("usd").create()`.
///
/// The script of its name with `_response` runs as soon as the answer is there, with the answer as `parsed_data`, or the one with `_error`, with
/// the error as `parsed_error`; both have the name of who answered as `source`. Both have to be in the library.
#[derive(Debug, Clone)]
#[must_use = "it is given to `ScriptFlowsBuilder::dispatch`"]
pub struct Dispatch {
    pub(super) constructor: String,
    pub(super) method: String,
    call: String,
    pub(super) fields: Vec<String>,
    scripts: String,
    source: String,
}

impl Dispatch {
    /// The function `constructor` gives a value whose `method` makes the `call` of that name.
    ///
    /// Its scripts are, of `new_payment_intent` and `create`, `new_create_payment_intent_response` and `new_create_payment_intent_error`, and
    /// who answers is the part of the call's name before its first dot.
    pub fn new(constructor: &str, method: &str, call: &str) -> Dispatch {
        let what = constructor.strip_prefix("new_").unwrap_or(constructor);
        Dispatch {
            constructor: constructor.into(),
            method: method.into(),
            call: call.into(),
            fields: Vec::new(),
            scripts: format!("new_{method}_{what}"),
            source: call.split('.').next().unwrap_or(call).into(),
        }
    }

    /// Adds methods that set the argument of their name: `.amount(2000)`. Any other is set by `.set("name", value)`.
    pub fn fields<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Dispatch {
        self.fields.extend(names.into_iter().map(Into::into));
        self
    }

    /// Sets what the names of its scripts begin with.
    pub fn scripts(mut self, name: &str) -> Dispatch {
        name.clone_into(&mut self.scripts);
        self
    }

    /// Sets the name of who answers, `source` in its scripts.
    pub fn source(mut self, name: &str) -> Dispatch {
        name.clone_into(&mut self.source);
        self
    }

    /// The name of the call that it makes.
    pub(super) fn call_name(&self) -> &str {
        &self.call
    }

    pub(super) fn source_name(&self) -> &str {
        &self.source
    }

    /// The scripts that its answer begins: after a success, and after an error.
    pub(super) fn scripts_after(&self) -> [String; 2] {
        [format!("{}_response", self.scripts), format!("{}_error", self.scripts)]
    }
}

/// A call that a script puts together.
#[derive(Debug, Clone)]
struct Draft {
    dispatch: Arc<Dispatch>,
    arguments: Map<String, Value>,
    options: Options,
}

impl Draft {
    fn set(mut self, context: &NativeCallContext<'_>, name: &str, value: &Dynamic) -> Result<Draft, Thrown> {
        let value = to_json(value).map_err(|error| thrown(context, format!("`{name}`: {error}")))?;
        self.arguments.insert(name.to_owned(), value);
        Ok(self)
    }

    fn option(mut self, context: &NativeCallContext<'_>, name: &str, value: &Dynamic) -> Result<Draft, Thrown> {
        self.options.set(name, value).map_err(|error| thrown(context, error))?;
        Ok(self)
    }

    fn send(self, context: &NativeCallContext<'_>) -> Result<(), Thrown> {
        let Draft { dispatch, arguments, options } = self;
        if context.fn_name() != dispatch.method {
            let text = format!("what `{}()` gives is sent by `.{}()`", dispatch.constructor, dispatch.method);
            return Err(thrown(context, text));
        }
        let arguments = Value::Object(arguments);
        let key = options.key(&arguments);
        let what = format!("{}().{}()", dispatch.constructor, dispatch.method);
        at_once(context, &what, &key, |run, path, place: &Place| {
            let (path, place) = (path.to_owned(), place.clone());
            run.dispatch(Dispatched { path, place, dispatch, arguments, options })?;
            Ok(Answer::Value(Dynamic::UNIT))
        })?;
        Ok(())
    }
}

/// Lets scripts call these functions.
pub(super) fn register(engine: &mut Engine, dispatches: &BTreeMap<String, Arc<Dispatch>>) {
    engine.register_type_with_name::<Draft>("call");
    for (name, dispatch) in dispatches {
        let dispatch = dispatch.clone();
        engine.register_fn(name, move || Draft {
            dispatch: dispatch.clone(),
            arguments: Map::new(),
            options: Options::default(),
        });
    }
    let fields: std::collections::BTreeSet<_> = dispatches.values().flat_map(|it| &it.fields).collect();
    for field in fields {
        let name = field.clone();
        engine.register_fn(field, move |context: NativeCallContext<'_>, draft: Draft, value: Dynamic| {
            draft.set(&context, &name, &value)
        });
    }
    engine.register_fn("set", |context: NativeCallContext<'_>, draft: Draft, name: ImmutableString, value: Dynamic| {
        draft.set(&context, &name, &value)
    });
    for option in ["retry", "timeout"] {
        engine.register_fn(option, move |context: NativeCallContext<'_>, draft: Draft, value: Dynamic| {
            draft.option(&context, option, &value)
        });
    }
    let methods: std::collections::BTreeSet<_> = dispatches.values().map(|it| &it.method).collect();
    for method in methods {
        engine.register_fn(method, |context: NativeCallContext<'_>, draft: Draft| draft.send(&context));
    }
}

/// The call that a dispatching function makes.
pub(super) fn call_of(calls: &Calls, dispatch: &Dispatch) -> Option<Arc<Call>> {
    calls.get(dispatch.call_name()).cloned()
}
