//! Forms as Stripe takes them: a JSON object with its places in brackets, `metadata[order]=17&items[0][price]=price_1`.
//!
//! A text comes out of a form as it went in, whatever is in it; numbers and truths come out as texts.

use form_urlencoded::Serializer;
use serde_json::{Map, Value};

/// The depth at which a form is refused.
const MAX_DEPTH: usize = 8;

/// The form of a JSON object. What is null is left out.
pub(crate) fn encode(params: &Value) -> String {
    let mut form = Serializer::new(String::new());
    if let Value::Object(fields) = params {
        for (name, value) in fields {
            append(&mut form, name, value);
        }
    }
    form.finish()
}

fn append(form: &mut Serializer<'_, String>, place: &str, value: &Value) {
    match value {
        Value::Null => {}
        Value::Bool(value) => drop(form.append_pair(place, if *value { "true" } else { "false" })),
        Value::Number(value) => drop(form.append_pair(place, &value.to_string())),
        Value::String(value) => drop(form.append_pair(place, value)),
        Value::Array(values) => {
            for (at, value) in values.iter().enumerate() {
                append(form, &format!("{place}[{at}]"), value);
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                append(form, &format!("{place}[{name}]"), value);
            }
        }
    }
}

/// The JSON object of a form, all of whose values are texts; the name of the place that is none, or that is there twice.
pub(crate) fn decode(form: &[u8]) -> Result<Value, String> {
    let mut object = Map::new();
    for (place, value) in form_urlencoded::parse(form) {
        let (name, rest) = place.split_once('[').map_or((&*place, ""), |(name, rest)| (name, rest));
        let inner: Vec<&str> = match rest {
            "" => Vec::new(),
            rest => rest.strip_suffix(']').ok_or_else(|| place.to_string())?.split("][").collect(),
        };
        if name.is_empty() || inner.len() >= MAX_DEPTH {
            return Err(place.into_owned());
        }
        put(&mut object, name, &inner, &value).ok_or_else(|| place.to_string())?;
    }
    Ok(with_lists(Value::Object(object)))
}

/// Puts a value at its place; `None` if there is something.
fn put(object: &mut Map<String, Value>, name: &str, inner: &[&str], value: &str) -> Option<()> {
    let Some((next, rest)) = inner.split_first() else {
        return object.insert(name.to_owned(), value.into()).is_none().then_some(());
    };
    let slot = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
    put(slot.as_object_mut()?, next, rest, value)
}

/// The same with lists where all names of an object are numbers from zero.
fn with_lists(value: Value) -> Value {
    let Value::Object(fields) = value else { return value };
    if !fields.is_empty() && (0..fields.len()).all(|at| fields.contains_key(&at.to_string())) {
        let mut fields = fields;
        let items = (0..fields.len()).filter_map(|at| fields.remove(&at.to_string())).collect::<Vec<_>>();
        return Value::Array(items.into_iter().map(with_lists).collect());
    }
    Value::Object(fields.into_iter().map(|(name, value)| (name, with_lists(value))).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plan::HOSTILE;

    #[test]
    fn an_object_has_the_form_that_stripe_documents() {
        let params = json!({"amount": 2000, "confirm": true, "customer": null, "items": [{"price": "p_1"}], "metadata": {"order": "17"}});
        assert_eq!(encode(&params), "amount=2000&confirm=true&items%5B0%5D%5Bprice%5D=p_1&metadata%5Border%5D=17");
    }

    #[test]
    fn whatever_is_in_a_text_comes_out_as_it_went_in() {
        for text in HOSTILE {
            let params = json!({"name": text, "metadata": {"name": text}, "items": [{"price": text}, {"price": text}]});
            assert_eq!(decode(encode(&params).as_bytes()), Ok(params));
        }
    }

    #[test]
    fn a_form_that_is_none_is_refused_with_its_place() {
        for form in ["a[b=1", "a=1&a=2", "a=1&a[b]=2", "[a]=1", "a[b][c][d][e][f][g][h][i][j]=1"] {
            assert!(decode(form.as_bytes()).is_err(), "{form}");
        }
    }
}
