//! Values on their way into the store, as JSON that can be read again.
//!
//! JSON has no text for a number that is not finite, and `serde_json` writes `null` in its place; nor does it read what is nested
//! deeper than it can follow. Either would be taken, acknowledged, and found out when it is needed: so both are refused here.

use std::cell::Cell;
use std::fmt::Display;
use std::io;

use serde::ser::{self, Error as _, Serialize};
use serde_json::ser::Formatter;

/// The depth to which lists and objects may be nested: one more, and `serde_json` refuses to read it.
const MAX_DEPTH: u32 = 127;

/// The value as JSON.
///
/// # Errors
/// If it cannot be JSON, holds a number that is not finite, or is nested deeper than [`MAX_DEPTH`].
pub(crate) fn to_vec(value: &(impl Serialize + ?Sized)) -> Result<Vec<u8>, serde_json::Error> {
    // What serializes may be the application's, and have other values written meanwhile.
    let mut json = SCRATCH.take();
    json.clear();
    let seen = Seen::default();
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, Watching(&seen));
    match value.serialize(&mut serializer) {
        Err(_) if seen.is_too_deep() => return Err(serde_json::Error::custom(TOO_DEEP)),
        written => written?,
    }
    if seen.has_null.get() {
        // There is no telling what the null was, but for looking at the value itself.
        value.serialize(FiniteOnly)?;
    }
    // No longer than it is: it is kept as long as the row or the alarm that it is of.
    let exact = json.as_slice().to_vec();
    if json.capacity() <= MAX_SCRATCH {
        SCRATCH.set(json);
    }
    Ok(exact)
}

std::thread_local! {
    /// Memory for a value whose length is not known yet.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The most memory that a thread keeps for that.
const MAX_SCRATCH: usize = 16 * 1024;

const TOO_DEEP: &str = "nested deeper than 127 lists and objects, which could not be read again; store it flat";
const NOT_FINITE: &str = "a number that is not finite (NaN or infinite) has no JSON; store an `Option`, or a text";

/// The text that has been written.
#[derive(Debug, Default)]
struct Seen {
    depth: Cell<u32>,
    has_null: Cell<bool>,
}

impl Seen {
    fn is_too_deep(&self) -> bool {
        self.depth.get() > MAX_DEPTH
    }

    fn enter(&self) -> io::Result<()> {
        self.depth.set(self.depth.get() + 1);
        if self.is_too_deep() { Err(io::Error::other(TOO_DEEP)) } else { Ok(()) }
    }

    fn leave(&self) {
        self.depth.set(self.depth.get().saturating_sub(1));
    }
}

/// Writes without white space, and notes what it writes.
struct Watching<'a>(&'a Seen);

impl Formatter for Watching<'_> {
    fn write_null<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.has_null.set(true);
        writer.write_all(b"null")
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.enter()?;
        writer.write_all(b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.leave();
        writer.write_all(b"]")
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.enter()?;
        writer.write_all(b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.leave();
        writer.write_all(b"}")
    }

    fn write_raw_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let (mut is_text, mut is_escaped) = (false, false);
        for byte in fragment.bytes() {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' if is_text => is_escaped = true,
                b'"' => is_text = !is_text,
                b'[' | b'{' if !is_text => self.0.enter()?,
                b']' | b'}' if !is_text => self.0.leave(),
                _ => {}
            }
        }
        writer.write_all(fragment.as_bytes())
    }
}

/// Walks through a value and writes nothing; fails at a number that is not finite.
#[derive(Debug, Clone, Copy)]
struct FiniteOnly;

type Found = Result<(), serde_json::Error>;

/// Methods for what holds no number.
macro_rules! holds_none {
    ($($method:ident($($kind:ty),*);)*) => {
        $(fn $method(self, $(_: $kind),*) -> Found {
            Ok(())
        })*
    };
}

impl ser::Serializer for FiniteOnly {
    type Ok = ();
    type Error = serde_json::Error;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    holds_none! {
        serialize_bool(bool);
        serialize_i8(i8);
        serialize_i16(i16);
        serialize_i32(i32);
        serialize_i64(i64);
        serialize_i128(i128);
        serialize_u8(u8);
        serialize_u16(u16);
        serialize_u32(u32);
        serialize_u64(u64);
        serialize_u128(u128);
        serialize_char(char);
        serialize_str(&str);
        serialize_bytes(&[u8]);
        serialize_none();
        serialize_unit();
        serialize_unit_struct(&'static str);
        serialize_unit_variant(&'static str, u32, &'static str);
    }

    fn collect_str<T: ?Sized + Display>(self, _: &T) -> Found {
        Ok(())
    }

    fn serialize_f32(self, number: f32) -> Found {
        self.serialize_f64(number.into())
    }

    fn serialize_f64(self, number: f64) -> Found {
        if number.is_finite() { Ok(()) } else { Err(serde_json::Error::custom(NOT_FINITE)) }
    }

    fn serialize_some<T: ?Sized + Serialize>(self, value: &T) -> Found {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: ?Sized + Serialize>(self, _: &'static str, value: &T) -> Found {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Found {
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self, Self::Error> {
        Ok(self)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, Self::Error> {
        Ok(self)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Self::Error> {
        Ok(self)
    }

    fn serialize_tuple_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<Self, Self::Error> {
        Ok(self)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self, Self::Error> {
        Ok(self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Self::Error> {
        Ok(self)
    }

    fn serialize_struct_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<Self, Self::Error> {
        Ok(self)
    }
}

/// The parts of what has some: each is looked at.
macro_rules! looks_at_each {
    ($($part:ident::$method:ident($($name:ty)?);)*) => {
        $(impl ser::$part for FiniteOnly {
            type Ok = ();
            type Error = serde_json::Error;

            fn $method<T: ?Sized + Serialize>(&mut self, $(_: $name,)? value: &T) -> Found {
                value.serialize(*self)
            }

            fn end(self) -> Found {
                Ok(())
            }
        })*
    };
}

looks_at_each! {
    SerializeSeq::serialize_element();
    SerializeTuple::serialize_element();
    SerializeTupleStruct::serialize_field();
    SerializeTupleVariant::serialize_field();
    SerializeStruct::serialize_field(&'static str);
    SerializeStructVariant::serialize_field(&'static str);
}

impl ser::SerializeMap for FiniteOnly {
    type Ok = ();
    type Error = serde_json::Error;

    fn serialize_key<T: ?Sized + Serialize>(&mut self, key: &T) -> Found {
        key.serialize(*self)
    }

    fn serialize_value<T: ?Sized + Serialize>(&mut self, value: &T) -> Found {
        value.serialize(*self)
    }

    fn end(self) -> Found {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;

    fn nested(depth: usize) -> Value {
        (1..depth).fold(Value::Array(Vec::new()), |inner, n| match n % 2 {
            0 => Value::Array(vec![inner]),
            _ => Value::Object([("k".to_owned(), inner)].into_iter().collect()),
        })
    }

    #[test]
    fn what_is_nested_as_deep_as_can_be_read_is_taken_and_one_more_is_refused() {
        let deepest = to_vec(&nested(127)).expect("it can be read");
        assert_eq!(serde_json::from_slice::<Value>(&deepest).expect("it can be read"), nested(127));
        let error = to_vec(&nested(128)).expect_err("it cannot be read").to_string();
        assert!(error.contains("127"), "{error}");
        assert!(
            serde_json::from_slice::<Value>(&serde_json::to_vec(&nested(128)).expect("it can be written")).is_err()
        );
    }

    #[test]
    fn a_number_that_is_not_finite_is_refused_wherever_it_stands() {
        #[derive(serde::Serialize)]
        enum Of {
            One(f64),
            Two(u8, f32),
            Three { x: Option<f64> },
        }
        for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let found = [
                to_vec(&odd),
                to_vec(&[1.0, odd]),
                to_vec(&(1, Some(odd))),
                to_vec(&BTreeMap::from([("k", vec![odd])])),
                to_vec(&Of::One(odd)),
                #[allow(clippy::cast_possible_truncation, reason = "it is not finite either way")]
                to_vec(&Of::Two(1, odd as f32)),
                to_vec(&Of::Three { x: Some(odd) }),
            ];
            for (n, found) in found.into_iter().enumerate() {
                let error = found.expect_err("it has no JSON").to_string();
                assert!(error.contains("finite"), "{n}: {error}");
            }
        }
    }

    #[test]
    fn whatever_else_is_written_as_serde_json_does() {
        let value = serde_json::json!({"a": [1, -2.5, null, "x\"[{"], "b": {}, "c": [[], true], "d": u64::MAX});
        assert_eq!(to_vec(&value).expect("it is JSON"), serde_json::to_vec(&value).expect("it is JSON"));
        let value = (None::<f64>, (), i128::MAX, f64::MAX, 'c', "text", u8::MAX);
        assert_eq!(to_vec(&value).expect("it is JSON"), serde_json::to_vec(&value).expect("it is JSON"));
    }
}
