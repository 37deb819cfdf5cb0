//! JSON as scripts have it, and back: values, and never source.

use rhai::{Array, Blob, Dynamic, ImmutableString, Map};
use serde_json::Value;

/// The deepest value that can be JSON. Deeper ones a script can make are refused, rather than gone through.
const MAX_DEPTH: usize = 100;

/// A value as a script has it. Whole numbers that do not fit into 64 bits with a sign become floating point ones.
pub(super) fn to_script(value: &Value) -> Dynamic {
    match value {
        Value::Null => Dynamic::UNIT,
        Value::Bool(value) => (*value).into(),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => whole.into(),
            None => number.as_f64().unwrap_or(f64::NAN).into(),
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => items.iter().map(to_script).collect::<Array>().into(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.as_str().into(), to_script(value))).collect::<Map>().into()
        }
    }
}

/// A value of a script as JSON.
///
/// # Errors
/// The part of it that cannot be JSON: a closure, a callback, a number that is none, a value within itself.
pub(super) fn to_json(value: &Dynamic) -> Result<Value, String> {
    within(value, MAX_DEPTH)
}

fn within(value: &Dynamic, depth: usize) -> Result<Value, String> {
    let Some(depth) = depth.checked_sub(1) else { return Err(format!("it is more than {MAX_DEPTH} levels deep")) };
    if value.is_unit() {
        return Ok(Value::Null);
    }
    if let Ok(value) = value.as_bool() {
        return Ok(value.into());
    }
    if let Ok(value) = value.as_int() {
        return Ok(value.into());
    }
    if let Ok(value) = value.as_float() {
        let number = serde_json::Number::from_f64(value);
        return number.map(Value::Number).ok_or_else(|| format!("{value} is no number in JSON"));
    }
    if let Ok(value) = value.as_char() {
        return Ok(value.to_string().into());
    }
    if let Some(text) = value.read_lock::<ImmutableString>() {
        return Ok(text.as_str().into());
    }
    if let Some(items) = value.read_lock::<Array>() {
        return items.iter().map(|item| within(item, depth)).collect();
    }
    if let Some(fields) = value.read_lock::<Map>() {
        let fields = fields.iter().map(|(name, value)| Ok((name.to_string(), within(value, depth)?)));
        return fields.collect::<Result<_, String>>().map(Value::Object);
    }
    if let Some(bytes) = value.read_lock::<Blob>() {
        return Ok(bytes.iter().copied().map(Value::from).collect());
    }
    Err(format!("a value of the type `{}` cannot be JSON", value.type_name()))
}

/// About how many bytes a value has: its texts, and eight for each of what else there is.
pub(super) fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 8,
        Value::Array(items) => items.iter().map(size).sum::<usize>() + 8,
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + size(value)).sum::<usize>() + 8,
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_comes_back_as_it_was() {
        let value = json!({
            "": null, "a": [true, 1, -2.5, "`${x}` \" \\ // */ \n \u{2028}", {"b": []}], "n": i64::MIN, "s": "\u{0}",
        });
        assert_eq!(to_json(&to_script(&value)), Ok(value));
    }

    #[test]
    fn what_cannot_be_json_says_so() {
        let mut nested = Dynamic::UNIT;
        for _ in 0..200 {
            nested = Dynamic::from_array(vec![nested]);
        }
        assert_eq!(to_json(&nested), Err("it is more than 100 levels deep".into()));
        assert_eq!(to_json(&f64::NAN.into()), Err("NaN is no number in JSON".into()));
        let closure: Dynamic = rhai::FnPtr::new("f").unwrap().into();
        assert_eq!(to_json(&closure), Err("a value of the type `Fn` cannot be JSON".into()));
        assert_eq!(to_json(&to_script(&json!(u64::MAX))), Ok(json!(u64::MAX as f64)));
    }
}
