//! Reads JSON from strangers.
//!
//! serde alone is too kind for that: fields it does not know it skips without looking at their
//! depth, and of a key that comes twice a `Value` keeps the last. Here the raw bytes are checked
//! first; then each object is read into the fields that are known, each still as raw text, so
//! that an error can name the path of what is wrong.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::ApiError;

/// How deep objects and lists may stand in one another.
const DEPTH_MAX: usize = 64;

/// The body as text, once it is UTF-8 without a byte order mark and not too deep.
pub(super) fn checked(body: &[u8]) -> Result<&str, ApiError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(ApiError::json("The body is empty; send a JSON object"));
    }
    if body.starts_with(b"\xef\xbb\xbf") {
        return Err(ApiError::json(
            "The body begins with a byte order mark; send plain UTF-8",
        ));
    }
    let text = std::str::from_utf8(body).map_err(|error| {
        let at = error.valid_up_to();
        ApiError::json(format!("The body is not UTF-8 at byte {at}"))
    })?;
    if is_too_deep(body) {
        return Err(ApiError::json(format!(
            "The body is nested deeper than {DEPTH_MAX} levels"
        )));
    }
    Ok(text)
}

fn is_too_deep(body: &[u8]) -> bool {
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut escaped = false;
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return true;
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// What a JSON value is, told by its first letter.
fn kind(raw: &str) -> &'static str {
    match raw.as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b't' | b'f') => "true or false",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// The known fields of one object, each as raw text; unknown ones were skipped. A field that is
/// null counts as absent.
pub(super) struct Object<'a, const N: usize> {
    path: String,
    names: [&'static str; N],
    values: [Option<&'a RawValue>; N],
}

impl<'a, const N: usize> Object<'a, N> {
    /// Reads the object at `path`; the empty path is the body itself.
    pub(super) fn read(
        text: &'a str,
        path: impl Into<String>,
        names: [&'static str; N],
    ) -> Result<Self, ApiError> {
        let path = path.into();
        let text = text.trim_ascii();
        if !text.starts_with('{') {
            // Whether it is JSON at all matters more than what it is.
            serde_json::from_str::<IgnoredAny>(text).map_err(|error| syntax(&error))?;
            let is = kind(text);
            return Err(match path.is_empty() {
                true => ApiError::request(format!("The body must be a JSON object, not {is}")),
                false => ApiError::field(&path, format!("must be an object, not {is}")),
            });
        }
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let values = Known(&names)
            .deserialize(&mut deserializer)
            .map_err(|error| syntax(&error))?;
        deserializer.end().map_err(|error| syntax(&error))?;
        Ok(Self {
            path,
            names,
            values,
        })
    }

    /// The path of one of its fields, for errors.
    pub(super) fn path(&self, name: &str) -> String {
        match self.path.is_empty() {
            true => name.to_owned(),
            false => format!("{}.{name}", self.path),
        }
    }

    /// An error about one of its fields.
    pub(super) fn invalid(&self, name: &str, rule: impl fmt::Display) -> ApiError {
        ApiError::field(&self.path(name), rule)
    }

    /// What a required field holds.
    pub(super) fn required<T>(&self, name: &str, value: Option<T>) -> Result<T, ApiError> {
        value.ok_or_else(|| self.invalid(name, "is required"))
    }

    /// A field as it stands in the body.
    pub(super) fn raw(&self, name: &str) -> Option<&'a str> {
        let at = self.names.iter().position(|known| *known == name)?;
        self.values[at]
            .map(RawValue::get)
            .filter(|raw| *raw != "null")
    }

    pub(super) fn object<const M: usize>(
        &self,
        name: &str,
        names: [&'static str; M],
    ) -> Result<Option<Object<'a, M>>, ApiError> {
        self.raw(name)
            .map(|raw| Object::read(raw, self.path(name), names))
            .transpose()
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<Cow<'a, str>>, ApiError> {
        self.raw(name)
            .map(|raw| text(raw).map_err(|rule| self.invalid(name, rule)))
            .transpose()
    }

    /// A positive amount, such as of money.
    pub(super) fn amount(&self, name: &str, max: f64) -> Result<Option<f64>, ApiError> {
        let Some(raw) = self.raw(name) else {
            return Ok(None);
        };
        match serde_json::from_str::<f64>(raw) {
            Ok(amount) if amount > 0.0 && amount <= max => Ok(Some(amount)),
            Ok(_) => Err(self.invalid(name, format!("must be more than 0 and at most {max}"))),
            Err(_) => {
                let rule = format!("must be a number, not {}", kind(raw));
                Err(self.invalid(name, rule))
            }
        }
    }

    pub(super) fn boolean(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.raw(name) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => {
                Err(self.invalid(name, format!("must be true or false, not {}", kind(other))))
            }
        }
    }

    pub(super) fn integer(
        &self,
        name: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, ApiError> {
        self.raw(name)
            .map(|raw| integer(raw, range).map_err(|rule| self.invalid(name, rule)))
            .transpose()
    }

    /// A whole number that may be negative.
    pub(super) fn signed(
        &self,
        name: &str,
        range: RangeInclusive<i32>,
    ) -> Result<Option<i32>, ApiError> {
        let Some(raw) = self.raw(name) else {
            return Ok(None);
        };
        let number = serde_json::from_str(raw).ok();
        let (least, most) = (range.start(), range.end());
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.invalid(
                name,
                format!("must be a whole number from {least} to {most}"),
            )),
        }
    }

    /// A list, its elements as raw text.
    pub(super) fn list(&self, name: &str) -> Result<Option<Vec<&'a RawValue>>, ApiError> {
        let Some(raw) = self.raw(name) else {
            return Ok(None);
        };
        if !raw.starts_with('[') {
            return Err(self.invalid(name, format!("must be a list, not {}", kind(raw))));
        }
        let list = serde_json::from_str(raw).map_err(|error| syntax(&error))?;
        Ok(Some(list))
    }
}

/// A whole number within a range, as its text stands in JSON or a query; or the rule it breaks.
pub(super) fn integer(raw: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let digits = !raw.is_empty() && raw.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.then(|| raw.parse().ok()).flatten();
    number
        .filter(|number| range.contains(number))
        .ok_or_else(|| {
            format!(
                "must be a whole number from {} to {}",
                range.start(),
                range.end()
            )
        })
}

/// A JSON string; or the rule it breaks.
pub(super) fn text(raw: &str) -> Result<Cow<'_, str>, String> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

    if !raw.starts_with('"') {
        return Err(format!("must be a string, not {}", kind(raw)));
    }
    match serde_json::from_str(raw) {
        Ok(Text(text)) => Ok(text),
        // The syntax was checked before; this is half of a surrogate pair.
        Err(_) => Err("must be valid Unicode text; it holds half of a surrogate pair".to_owned()),
    }
}

fn syntax(error: &serde_json::Error) -> ApiError {
    ApiError::json(format!("Invalid JSON: {error}"))
}

struct Known<'n, const N: usize>(&'n [&'static str; N]);

impl<'de, const N: usize> DeserializeSeed<'de> for Known<'_, N> {
    type Value = [Option<&'de RawValue>; N];

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for Known<'_, N> {
    type Value = [Option<&'de RawValue>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        #[derive(Deserialize)]
        struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

        let mut values = [None; N];
        while let Some(Key(key)) = map.next_key()? {
            match self.0.iter().position(|name| *name == key) {
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
                Some(at) if values[at].is_some() => {
                    return Err(A::Error::custom(format_args!(
                        "the key {} comes twice",
                        self.0[at]
                    )));
                }
                Some(at) => values[at] = Some(map.next_value()?),
            }
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Code;
    use proptest::prelude::*;

    #[track_caller]
    fn code(body: &[u8]) -> Option<Code> {
        let read = checked(body).and_then(|text| Object::read(text, "", ["a", "b"]).map(|_| ()));
        read.err().map(|error| error.code)
    }

    #[test]
    fn what_is_no_json_is_said_to_be_none() {
        let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
        for body in [
            &b""[..],
            b" \n",
            b"{",
            b"{\"a\":}",
            b"{\"a\":1,}",
            b"{\"a\":1} x",
            b"// x\n{}",
            b"\xef\xbb\xbf{}",
            b"{\"a\":NaN}",
            b"{\"x\":01}",
            b"{\"a\":1,\"a\":2}",
            b"{\"\\ud800\":1}",
            b"\xff{}",
            b"{\"x\":\"\xc3\x28\"}",
            deep.as_bytes(),
        ] {
            let shown = String::from_utf8_lossy(body);
            assert_eq!(code(body), Some(Code::InvalidJson), "{shown}");
        }
        assert_eq!(code(b"[1]"), Some(Code::InvalidRequest));
        assert_eq!(code(b"null"), Some(Code::InvalidRequest));
    }

    #[test]
    fn unknown_fields_and_brackets_in_strings_are_no_trouble() {
        let body = format!("{{\"x\":1,\"x\":[2],\"a\":\"{}\\\"\"}}", "[".repeat(100));
        assert_eq!(code(body.as_bytes()), None);
        let at_the_limit = format!("{{\"x\":{}{}}}", "[".repeat(63), "]".repeat(63));
        assert_eq!(code(at_the_limit.as_bytes()), None);
    }

    #[test]
    fn half_a_surrogate_pair_is_no_text() {
        assert!(text(r#""\ud800""#).is_err());
        assert_eq!(text(r#""\ud83d\ude00""#).as_deref(), Ok("😀"));
    }

    #[test]
    fn a_number_is_whole_and_within_its_range() {
        assert_eq!(integer("7", 1..=9), Ok(7));
        for wrong in [
            "0",
            "10",
            "-1",
            "1.0",
            "1e0",
            "\"7\"",
            "",
            "99999999999999999999",
        ] {
            assert!(integer(wrong, 1..=9).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(body in ".{0,100}") {
            let _ = code(body.as_bytes());
            let _ = code(format!("{{\"a\":{body}}}").as_bytes());
        }
    }
}
