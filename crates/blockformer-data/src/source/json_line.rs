//! One string field of a JSON object, the others skipped.

use std::fmt;

use serde::de::{Deserializer as _, Error as _, IgnoredAny, MapAccess, Visitor};

/// The field called `name` of the object that `json` is; `None` if it is missing or null.
///
/// # Errors
/// If `json` is not one object and nothing else, or the field is there twice or is not a string.
pub(super) fn text_of(json: &str, name: &str) -> serde_json::Result<Option<String>> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let text = deserializer.deserialize_map(Field { name })?;
    deserializer.end()?;
    Ok(text)
}

struct Field<'a> {
    name: &'a str,
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a json object with a string field {:?}", self.name)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != self.name {
                map.next_value::<IgnoredAny>()?;
            } else if found.replace(map.next_value::<Option<String>>()?).is_some() {
                return Err(A::Error::custom(format_args!("duplicate field {:?}", self.name)));
            }
        }
        Ok(found.flatten())
    }
}
