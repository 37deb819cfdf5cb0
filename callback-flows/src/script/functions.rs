//! The functions that every script has, and those of the application, as Rhai calls them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rhai::{Array, Dynamic, Engine, FnPtr, ImmutableString, Map, NativeCallContext};
use serde_json::{Value, json};

use super::calls::{Call, Options, duration};
use super::failure::{Thrown, thrown};
use super::http;
use super::run::{self, Answer, Ask, all, ask, at_once, in_run, on_undo};
use super::value::{to_json, to_script};
use crate::engine::{Kind, Ticket};
use crate::journal::Detail;

/// The functions of the application, by their names.
pub(super) type Calls = BTreeMap<String, Arc<Call>>;

/// The object of `stripe.payment_intents.create(..)`: `stripe.payment_intents`.
#[derive(Debug, Clone)]
struct Api(ImmutableString);

/// A callback, as a script holds it.
#[derive(Debug, Clone)]
struct Handle {
    /// The place of the callback in the record.
    path: Arc<str>,
    name: ImmutableString,
    url: ImmutableString,
}

/// Lets scripts call all of these.
pub(super) fn register(engine: &mut Engine, calls: &Arc<Calls>) {
    register_calls(engine, calls);
    register_callbacks(engine);
    register_waits(engine);
    register_context(engine);
    register_saying(engine);
    engine.register_fn("parse_json", |context: NativeCallContext<'_>, text: &str| {
        let value = serde_json::from_str::<Value>(text);
        value.map(|value| to_script(&value)).map_err(|error| thrown(&context, format!("it is no JSON: {error}")))
    });
    engine.register_fn("to_json", |context: NativeCallContext<'_>, value: Dynamic| {
        as_json(&context, "the value", &value).map(|value| value.to_string())
    });
}

fn as_json(context: &NativeCallContext<'_>, what: &str, value: &Dynamic) -> Result<Value, Thrown> {
    to_json(value).map_err(|error| thrown(context, format!("{what}: {error}")))
}

fn register_calls(engine: &mut Engine, calls: &Arc<Calls>) {
    engine.register_type_with_name::<Api>("api");
    let names: Vec<_> = calls.keys().map(|name| name.split('.').collect::<Vec<_>>()).collect();
    let within = names.iter().flat_map(|parts| parts.get(1..parts.len() - 1).unwrap_or_default());
    let within: BTreeSet<_> = within.map(|part| (*part).to_owned()).collect();
    for part in within {
        let (calls, name) = (calls.clone(), part.clone());
        engine.register_get(part, move |context: NativeCallContext<'_>, api: &mut Api| {
            let path = format!("{}.{name}", api.0);
            let is_there =
                calls.range(format!("{path}.")..).next().is_some_and(|(call, _)| call.starts_with(&format!("{path}.")));
            if is_there { Ok(Api(path.into())) } else { Err(thrown(&context, format!("there is no `{path}`"))) }
        });
    }
    let methods: BTreeSet<_> =
        names.iter().filter(|parts| parts.len() > 1).filter_map(|parts| parts.last().copied()).collect();
    for method in methods {
        for_arguments(engine, method, calls);
    }
    for name in names.iter().filter(|parts| parts.len() == 1).map(|parts| parts[0]) {
        let of = calls.clone();
        engine.register_fn(name, move |context: NativeCallContext<'_>| called(&context, &of, context.fn_name(), &[]));
        let of = calls.clone();
        engine.register_fn(name, move |context: NativeCallContext<'_>, a: Dynamic| {
            called(&context, &of, context.fn_name(), &[a])
        });
        let of = calls.clone();
        engine.register_fn(name, move |context: NativeCallContext<'_>, a: Dynamic, b: Dynamic| {
            called(&context, &of, context.fn_name(), &[a, b])
        });
    }
    let roots: BTreeSet<_> = names.iter().filter(|parts| parts.len() > 1).map(|parts| parts[0].to_owned()).collect();
    // In functions and closures too, where no variable of the script is seen.
    #[allow(deprecated, reason = "marked so because it may change; the version of Rhai is pinned")]
    engine.on_var(move |name, index, context| {
        let is_api = index == 0 && roots.contains(name) && !context.scope().contains(name);
        Ok(is_api.then(|| Dynamic::from(Api(name.into()))))
    });
}

/// Lets scripts call a method of an API with up to three arguments: those of `http` have a URL first.
fn for_arguments(engine: &mut Engine, method: &str, calls: &Arc<Calls>) {
    let full = |context: &NativeCallContext<'_>, api: &Api| format!("{}.{}", api.0, context.fn_name());
    let of = calls.clone();
    engine.register_fn(method, move |context: NativeCallContext<'_>, api: Api| {
        called(&context, &of, &full(&context, &api), &[])
    });
    let of = calls.clone();
    engine.register_fn(method, move |context: NativeCallContext<'_>, api: Api, a: Dynamic| {
        called(&context, &of, &full(&context, &api), &[a])
    });
    let of = calls.clone();
    engine.register_fn(method, move |context: NativeCallContext<'_>, api: Api, a: Dynamic, b: Dynamic| {
        called(&context, &of, &full(&context, &api), &[a, b])
    });
    if http::METHODS.contains(&method) && calls.contains_key(&format!("http.{method}")) {
        let of = calls.clone();
        engine.register_fn(
            method,
            move |context: NativeCallContext<'_>, api: Api, a: Dynamic, b: Dynamic, c: Dynamic| {
                called(&context, &of, &full(&context, &api), &[a, b, c])
            },
        );
    }
}

/// Calls a function of the application, or hands out what it answered.
fn called(
    context: &NativeCallContext<'_>,
    calls: &Calls,
    name: &str,
    arguments: &[Dynamic],
) -> Result<Dynamic, Thrown> {
    let call = calls.get(name).ok_or_else(|| thrown(context, format!("there is no `{name}`")))?;
    let (arguments, options) = match name.strip_prefix("http.") {
        Some(method) => request(context, method, arguments)?,
        None => match arguments {
            [] => (json!({}), Options::default()),
            [value] => (as_json(context, "the arguments", value)?, Options::default()),
            [value, options] => (as_json(context, "the arguments", value)?, options_of(context, options)?),
            _ => return Err(thrown(context, format!("`{name}` takes its arguments as one object, and options"))),
        },
    };
    let key = options.key(&arguments);
    ask(context, name, &key, |_| Ok(Ask::Call { call: call.clone(), arguments, options }))
}

fn map_of(context: &NativeCallContext<'_>, what: &str, value: &Dynamic) -> Result<Map, Thrown> {
    let map = value.read_lock::<Map>().map(|map| map.clone());
    map.ok_or_else(|| thrown(context, format!("{what} are an object, `#{{..}}`, and not {}", value.type_name())))
}

fn options_of(context: &NativeCallContext<'_>, value: &Dynamic) -> Result<Options, Thrown> {
    let mut options = Options::default();
    for (name, value) in map_of(context, "the options of a call", value)? {
        options.set(&name, &value).map_err(|error| thrown(context, error))?;
    }
    Ok(options)
}

/// A request as `http.get(url, options)` or `http.post(url, body, options)` asks for it.
fn request(context: &NativeCallContext<'_>, method: &str, arguments: &[Dynamic]) -> Result<(Value, Options), Thrown> {
    let has_body = !matches!(method, "get" | "delete");
    let (url, body, given) = match arguments {
        [url] => (url, None, None),
        [url, given] if !has_body => (url, None, Some(given)),
        [url, body] => (url, Some(body), None),
        [url, body, given] if has_body => (url, Some(body), Some(given)),
        _ => {
            return Err(thrown(
                context,
                format!("it is `http.{method}(url{}, options)`", if has_body { ", body" } else { "" }),
            ));
        }
    };
    let url = url.read_lock::<ImmutableString>().map(|url| url.to_string());
    let url = url.ok_or_else(|| thrown(context, "a URL is a text"))?;
    let body = body.map(|body| as_json(context, "the body", body)).transpose()?;
    let mut asked = http::Asked { url, body, ..http::Asked::default() };
    let mut options = Options::default();
    for (name, value) in
        given.map(|given| map_of(context, "the options of a request", given)).transpose()?.unwrap_or_default()
    {
        let fields = |value| match as_json(context, "the options", value)? {
            Value::Object(fields) => Ok(fields),
            _ => Err(thrown(context, format!("`{name}` is an object, `#{{..}}`"))),
        };
        match &*name {
            "headers" => asked.headers = fields(&value)?,
            "query" => asked.query = fields(&value)?,
            "form" => asked.form = value.as_bool().map_err(|_| thrown(context, "`form` is true or false"))?,
            other => options.set(other, &value).map_err(|error| thrown(context, error))?,
        }
    }
    let asked = serde_json::to_value(asked).map_err(|error| thrown(context, error))?;
    Ok((asked, options))
}

fn register_callbacks(engine: &mut Engine) {
    engine.register_type_with_name::<Handle>("callback");
    engine.register_fn("callback", |context: NativeCallContext<'_>, name: ImmutableString| {
        let path = in_run(&context, |run| Ok(run.next_path()))?;
        if name.is_empty() {
            return Err(thrown(&context, "a callback has a name"));
        }
        let open = |flow: &crate::Flow| -> Ticket {
            flow.shared().claim(flow.scope(), Kind::Callback, &name, None, Detail::None)
        };
        let answer = at_once(&context, "callback", &json!(name.as_str()), |run, _, _| run.open(&name, open))?;
        let Answer::Callback(_, url) = answer else { return Err(thrown(&context, "it is no callback")) };
        Ok(Handle { path: path.into(), name: name.clone(), url: url.into() })
    });
    engine.register_get("url", |context: NativeCallContext<'_>, callback: &mut Handle| {
        let none = "there is no URL for callbacks: set `Flows::builder().callbacks(..)`";
        if callback.url.is_empty() { Err(thrown(&context, none)) } else { Ok(callback.url.clone()) }
    });
    for (name, is_whole) in [("next", false), ("next_call", true)] {
        engine.register_fn(name, move |context: NativeCallContext<'_>, callback: Handle| {
            next(&context, &callback, None, is_whole)
        });
        engine.register_fn(name, move |context: NativeCallContext<'_>, callback: Handle, limit: Dynamic| {
            next(&context, &callback, Some(&limit), is_whole)
        });
    }
    engine.register_fn("close", |context: NativeCallContext<'_>, callback: Handle| -> Result<(), Thrown> {
        at_once(&context, "close", &json!(*callback.path), |run, _, _| {
            run.close(&callback.path);
            Ok(Answer::Value(Dynamic::UNIT))
        })?;
        Ok(())
    });
}

fn next(
    context: &NativeCallContext<'_>,
    callback: &Handle,
    limit: Option<&Dynamic>,
    is_whole: bool,
) -> Result<Dynamic, Thrown> {
    let limit = limit.map(duration).transpose().map_err(|error| thrown(context, error))?;
    let what = format!("next of {}", callback.path);
    ask(context, &what, &json!([limit, is_whole]), |run| {
        if run.is_awaited(&what) {
            return Err(format!("the callback {:?} is waited for already", callback.name));
        }
        let ticket = run.callback(&callback.path);
        let callback = ticket.ok_or_else(|| format!("the callback {:?} is closed", callback.name))?;
        Ok(Ask::Next { callback, limit, is_whole })
    })
}

fn register_waits(engine: &mut Engine) {
    // With the types of Rhai's own `sleep`, which would hold up the thread.
    engine.register_fn("sleep", |context: NativeCallContext<'_>, time: i64| sleep(&context, &time.into()));
    engine.register_fn("sleep", |context: NativeCallContext<'_>, time: f64| sleep(&context, &time.into()));
    engine.register_fn("sleep", |context: NativeCallContext<'_>, time: ImmutableString| sleep(&context, &time.into()));
    engine.register_fn("call_flow", |context: NativeCallContext<'_>, name: ImmutableString| {
        call_flow(&context, &name, Map::new())
    });
    engine.register_fn("call_flow", |context: NativeCallContext<'_>, name: ImmutableString, arguments: Map| {
        call_flow(&context, &name, arguments)
    });
    engine.register_fn("all", |context: NativeCallContext<'_>, closures: Array| {
        let closures = closures.into_iter().map(|closure| closure.try_cast::<FnPtr>()).collect::<Option<Vec<_>>>();
        let closures = closures.ok_or_else(|| thrown(&context, "`all` takes closures: `all([|| .., || ..])`"))?;
        all(&context, closures)
    });
    engine.register_fn("on_undo", |context: NativeCallContext<'_>, closure: FnPtr| on_undo(&context, closure));
    engine.register_fn("now", |context: NativeCallContext<'_>| {
        value_of(at_once(&context, "now", &Value::Null, |run, _, _| {
            Ok(Answer::Value(run.flow.now().as_millis().into()))
        }))
    });
    engine.register_fn("uuid", |context: NativeCallContext<'_>| {
        value_of(at_once(&context, "uuid", &Value::Null, |run, _, _| Ok(Answer::Value(run.flow.uuid().into()))))
    });
}

fn value_of(answer: Result<Answer, Thrown>) -> Result<Dynamic, Thrown> {
    answer.map(|answer| if let Answer::Value(value) = answer { value } else { Dynamic::UNIT })
}

fn sleep(context: &NativeCallContext<'_>, time: &Dynamic) -> Result<(), Thrown> {
    let time = duration(time).map_err(|error| thrown(context, error))?;
    ask(context, "sleep", &json!(time), |_| Ok(Ask::Sleep(time))).map(drop)
}

fn call_flow(context: &NativeCallContext<'_>, name: &str, arguments: Map) -> Result<Dynamic, Thrown> {
    let arguments = as_json(context, "the arguments", &arguments.into())?;
    let script = in_run(context, |run| {
        let none = || {
            format!(
                "there is no script {name:?} among those that this flow has begun with: name it by a text of its own"
            )
        };
        run.compiled.name(name).ok_or_else(none)
    })?;
    ask(context, "call_flow", &json!([name, arguments]), |_| {
        let Value::Object(arguments) = arguments.clone() else { return Err("the arguments are an object".into()) };
        Ok(Ask::Child { script, arguments })
    })
}

fn register_context(engine: &mut Engine) {
    engine.register_fn("set_context", |context: NativeCallContext<'_>, key: ImmutableString, value: Dynamic| {
        let value = as_json(&context, "the value", &value)?;
        in_run(&context, |run| run.set_context(&key, value))
    });
    engine.register_fn("get_context", |context: NativeCallContext<'_>, key: ImmutableString| {
        in_run(&context, |run| Ok(run.context.get(&*key).map_or(Dynamic::UNIT, to_script)))
    });
    engine.register_fn("context", |context: NativeCallContext<'_>| {
        in_run(&context, |run| Ok(to_script(&Value::Object(run.context.clone()))))
    });
}

fn register_saying(engine: &mut Engine) {
    engine.on_print(|text| {
        let _ = run::say(|flow| {
            tracing::info!(flow = %flow.shared().identity, "{text}");
            flow.emit("print", text).map_err(|error| error.to_string())
        });
    });
    engine.on_debug(|text, source, position| {
        let _ = run::say(|flow| {
            tracing::debug!(flow = %flow.shared().identity, source, %position, "{text}");
            flow.emit("debug", text).map_err(|error| error.to_string())
        });
    });
    engine.register_fn("emit", |context: NativeCallContext<'_>, name: ImmutableString, value: Dynamic| {
        let value = as_json(&context, "the value", &value)?;
        said(&context, |flow| flow.emit(&name, &value))
    });
    engine.register_fn("progress", |context: NativeCallContext<'_>, value: Dynamic| {
        let value = as_json(&context, "the value", &value)?;
        said(&context, |flow| flow.progress(&value))
    });
    engine.register_fn("resource", |context: NativeCallContext<'_>, url: ImmutableString| {
        said(&context, |flow| flow.resource(&url))
    });
}

fn said(
    context: &NativeCallContext<'_>,
    say: impl FnOnce(&crate::Flow) -> crate::FlowResult<()>,
) -> Result<(), Thrown> {
    run::say(|flow| say(flow).map_err(|error| error.to_string())).map_err(|error| thrown(context, error))
}
