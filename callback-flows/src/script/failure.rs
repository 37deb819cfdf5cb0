//! Places in scripts, and what is said when one fails.

use std::fmt;
use std::sync::Arc;

use rhai::{EvalAltResult, NativeCallContext, Position};

use super::value::to_json;

/// The error of a function that a script has called.
pub(super) type Thrown = Box<EvalAltResult>;

/// A place in a script: its file, line and column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    file: Arc<str>,
    position: Position,
}

impl Place {
    pub(super) fn new(file: &str, position: Position) -> Place {
        Place { file: file.into(), position }
    }

    /// The place of a call.
    pub(super) fn of(context: &NativeCallContext<'_>) -> Place {
        Place::new(context.call_source().unwrap_or("script"), context.call_position())
    }

    /// The file, line and column, as a part of the name of an operation.
    pub(super) fn in_name(&self) -> String {
        let (line, column) = (self.position.line().unwrap_or(0), self.position.position().unwrap_or(0));
        format!("{} {line},{column}", self.file)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.position.line() {
            write!(f, ":{line}")?;
            if let Some(column) = self.position.position() {
                write!(f, ":{column}")?;
            }
        }
        Ok(())
    }
}

/// An error with this text, at the place of the call.
pub(super) fn thrown(context: &NativeCallContext<'_>, text: impl fmt::Display) -> Thrown {
    EvalAltResult::ErrorRuntime(text.to_string().into(), context.call_position()).into()
}

/// The error that ends a run and that no script can catch.
pub(super) fn terminated(position: Position) -> Thrown {
    EvalAltResult::ErrorTerminated(rhai::Dynamic::UNIT, position).into()
}

/// The error of a script in words: file, line, column, what was thrown, and a line for each call that led there. `instead` is said in the
/// place of the error's own text.
pub(super) fn describe(file: &str, mut error: EvalAltResult, instead: Option<&str>) -> String {
    let mut file = file.to_owned();
    let mut calls = Vec::new();
    loop {
        let (call, inner) = match error {
            EvalAltResult::ErrorInFunctionCall(name, source, inner, position) => {
                let name = if name.starts_with("anon$") { "a closure".to_owned() } else { format!("`{name}`") };
                let call = format!("in {name}, called at {}", Place::new(&file, position));
                if !source.is_empty() {
                    file = source;
                }
                (call, inner)
            }
            EvalAltResult::ErrorInModule(name, inner, position) => {
                let call = format!("in the module {name:?}, imported at {}", Place::new(&file, position));
                if !name.is_empty() {
                    file = file_of(&name);
                }
                (call, inner)
            }
            other => {
                error = other;
                break;
            }
        };
        calls.push(call);
        error = *inner;
    }
    let place = Place::new(&file, error.take_position());
    let text = match (&error, instead) {
        (_, Some(instead)) => instead.to_owned(),
        (EvalAltResult::ErrorRuntime(value, _), None) => {
            let text = value.read_lock::<rhai::ImmutableString>().map(|text| text.to_string());
            text.or_else(|| to_json(value).ok().map(|json| json.to_string())).unwrap_or_else(|| value.to_string())
        }
        (error, None) => error.to_string(),
    };
    let mut said = format!("{place}: {text}");
    for call in calls.iter().rev() {
        said.push_str("\n  ");
        said.push_str(call);
    }
    said
}

/// The name of the file of a script.
pub(super) fn file_of(script: &str) -> String {
    format!("{script}.rhai")
}
