//! Numbers of a definition, each within its bounds.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A whole number from `LOW` to `HIGH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Whole<const LOW: u64, const HIGH: u64>(pub(crate) u64);

impl<const LOW: u64, const HIGH: u64> Whole<LOW, HIGH> {
    /// It, if it is within the bounds.
    pub(crate) fn new<E: Error>(value: i64) -> Result<Self, E> {
        match u64::try_from(value) {
            Ok(value) if (LOW..=HIGH).contains(&value) => Ok(Self(value)),
            _ => Err(E::custom(format!(
                "{value} is out of range: give {LOW} to {HIGH}"
            ))),
        }
    }
}

impl<'de, const LOW: u64, const HIGH: u64> Deserialize<'de> for Whole<LOW, HIGH> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(i64::deserialize(from)?)
    }
}

/// A number above zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Positive(pub(crate) f64);

impl<'de> Deserialize<'de> for Positive {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = f64::deserialize(from)?;
        if value.is_finite() && value > 0.0 {
            return Ok(Self(value));
        }
        Err(D::Error::custom(format!(
            "{value} is out of range: give a number above 0"
        )))
    }
}

/// One, or a list of at least one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OneOrMany<T>(pub(crate) Vec<T>);

impl<const LOW: u64, const HIGH: u64> Default for OneOrMany<Whole<LOW, HIGH>> {
    fn default() -> Self {
        Self(vec![Whole(LOW)])
    }
}

impl<const LOW: u64, const HIGH: u64> OneOrMany<Whole<LOW, HIGH>> {
    /// The numbers.
    pub(crate) fn sizes(self) -> Vec<usize> {
        self.0.into_iter().map(|whole| whole.0 as usize).collect()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct One<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for One<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a number or a list of numbers")
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
                Ok(OneOrMany(vec![T::deserialize(value.into_deserializer())?]))
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
                Ok(OneOrMany(vec![T::deserialize(value.into_deserializer())?]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = from.next_element()? {
                    all.push(one);
                }
                if all.is_empty() {
                    return Err(A::Error::custom("an empty list: give at least one number"));
                }
                Ok(OneOrMany(all))
            }
        }
        from.deserialize_any(One(PhantomData))
    }
}
