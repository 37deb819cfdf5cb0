//! Functions of arrays that Rhai lets call another function by its name. A name may be data, and data calls nothing: of these, `index_of`
//! looks for the text, and the others take closures alone.

use rhai::{Array, Dynamic, Engine, ImmutableString, NativeCallContext};

use super::failure::{Thrown, thrown};

/// Functions that take a name, and those that take a name and a first value.
const BY_NAME: [&str; 10] =
    ["all", "dedup", "drain", "filter", "map", "reduce", "reduce_rev", "retain", "some", "sort"];
const FROM_A_VALUE: [&str; 2] = ["reduce", "reduce_rev"];

/// Puts others in the place of these.
pub(super) fn register(engine: &mut Engine) {
    let refused = |context: &NativeCallContext<'_>| -> Result<Dynamic, Thrown> {
        Err(thrown(context, format!("`{}` takes a closure, and no name of a function", context.fn_name())))
    };
    for name in BY_NAME {
        engine.register_fn(name, move |context: NativeCallContext<'_>, _: &mut Array, _: ImmutableString| {
            refused(&context)
        });
    }
    for name in FROM_A_VALUE {
        engine
            .register_fn(name, move |context: NativeCallContext<'_>, _: &mut Array, _: ImmutableString, _: Dynamic| {
                refused(&context)
            });
    }
    engine.register_fn("index_of", |array: &mut Array, text: ImmutableString| index_of(array, &text, 0));
    engine
        .register_fn("index_of", |array: &mut Array, text: ImmutableString, start: i64| index_of(array, &text, start));
}

/// The place of a text in an array from a place on, which counts from the end if it is negative; -1 if it is not there.
fn index_of(array: &Array, text: &str, start: i64) -> i64 {
    let from_end = i64::try_from(array.len()).unwrap_or(i64::MAX);
    let start = if start < 0 { start.saturating_add(from_end).max(0) } else { start };
    let is_it = |item: &Dynamic| item.read_lock::<ImmutableString>().is_some_and(|item| *item == *text);
    let found =
        array.iter().enumerate().skip(usize::try_from(start).unwrap_or(usize::MAX)).find(|(_, item)| is_it(item));
    found.and_then(|(at, _)| i64::try_from(at).ok()).unwrap_or(-1)
}
