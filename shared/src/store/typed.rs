//! Some of a line's values, read as what they are without a tree of JSON in between.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Tree, key and value of a change.
type Found<T> = (String, String, T);

/// A name, borrowed where it stands as it is.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Returns the changes at the `wanted` positions of a line's JSON, which are in order and set values.
///
/// # Errors
/// A value is no `T`: its key is named. Fewer may be returned than wanted where the line has not as many.
pub(super) fn read<T: DeserializeOwned>(
    json: &[u8],
    wanted: &[u16],
) -> Result<Vec<Found<T>>, (String, serde_json::Error)> {
    let mut reading = Reading { wanted, found: Vec::with_capacity(wanted.len()), at: String::new() };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    match (&mut reading).deserialize(&mut deserializer) {
        Ok(()) => Ok(reading.found),
        Err(error) => Err((reading.at, error)),
    }
}

struct Reading<'w, T> {
    wanted: &'w [u16],
    found: Vec<Found<T>>,
    /// The key being read.
    at: String,
}

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for &mut Reading<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for &mut Reading<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a commit")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Name(field)) = map.next_key()? {
            match &*field {
                "c" => map.next_value_seed(Changes(self))?,
                _ => map.next_value::<IgnoredAny>().map(|_| ())?,
            }
        }
        Ok(())
    }
}

struct Changes<'r, 'w, T>(&'r mut Reading<'w, T>);

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for Changes<'_, '_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for Changes<'_, '_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of changes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut changes: A) -> Result<(), A::Error> {
        let Reading { wanted, found, at } = self.0;
        for index in 0..=u16::MAX {
            if wanted.get(found.len()) == Some(&index) {
                let change = One { at: &mut *at, of: PhantomData };
                match changes.next_element_seed(change)? {
                    Some(change) => found.push(change),
                    None => break,
                }
            } else if changes.next_element::<IgnoredAny>()?.is_none() {
                break;
            }
        }
        Ok(())
    }
}

struct One<'r, T> {
    at: &'r mut String,
    of: PhantomData<T>,
}

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for One<'_, T> {
    type Value = Found<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found<T>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for One<'_, T> {
    type Value = Found<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tree, key and value")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut change: A) -> Result<Found<T>, A::Error> {
        let missing = || A::Error::custom("a change has tree, key and value");
        let Name(tree) = change.next_element()?.ok_or_else(missing)?;
        let Name(key) = change.next_element()?.ok_or_else(missing)?;
        key.as_ref().clone_into(self.at);
        let value = change.next_element()?.ok_or_else(missing)?;
        Ok((tree.into_owned(), key.into_owned(), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        r#"{"n":7,"c":[["a","k1",1],["b","k2",{"x":[1]}],["a","k\"3",3],["a","k4","text"],["a","k5",null]]}"#;

    #[test]
    fn values_are_read_at_their_places_past_others() {
        let found = read::<u64>(LINE.as_bytes(), &[0, 2]).unwrap();
        let expected = [("a".to_owned(), "k1".to_owned(), 1), ("a".to_owned(), "k\"3".to_owned(), 3)];
        assert_eq!(found, expected);
        assert_eq!(read::<u64>(LINE.as_bytes(), &[9]).unwrap(), []);
    }

    #[test]
    fn a_value_of_another_kind_is_named() {
        let (key, error) = read::<u64>(LINE.as_bytes(), &[0, 3]).unwrap_err();
        assert!(key == "k4" && error.to_string().contains("invalid type"), "{key}: {error}");
    }
}
