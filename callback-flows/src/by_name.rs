//! Values by names, such as those of a flow's operations: a list for as long as there are few of them, as there are in most flows that wait, and a map beyond.

use std::collections::HashMap;

use crate::journal::Key;

/// The most names that are looked through one by one.
const FEW: usize = 8;

/// Values by names.
#[derive(Debug)]
#[allow(clippy::box_collection, reason = "a map has twice the size of a list, and few flows have one")]
pub(crate) enum ByName<V> {
    Few(Vec<(Key, V)>),
    Many(Box<HashMap<Key, V>>),
}

impl<V> Default for ByName<V> {
    fn default() -> ByName<V> {
        ByName::Few(Vec::new())
    }
}

impl FromIterator<Key> for ByName<()> {
    fn from_iter<I: IntoIterator<Item = Key>>(names: I) -> ByName<()> {
        let mut these = ByName::default();
        names.into_iter().for_each(|name| these.insert(name, ()));
        these
    }
}

impl<V> ByName<V> {
    pub(crate) fn get(&self, name: &str) -> Option<&V> {
        match self {
            ByName::Few(few) => few.iter().find(|(known, _)| **known == *name).map(|(_, value)| value),
            ByName::Many(many) => many.get(name),
        }
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut V> {
        match self {
            ByName::Few(few) => few.iter_mut().find(|(known, _)| **known == *name).map(|(_, value)| value),
            ByName::Many(many) => many.get_mut(name),
        }
    }

    pub(crate) fn insert(&mut self, name: Key, value: V) {
        match self {
            ByName::Few(few) => {
                if let Some((_, known)) = few.iter_mut().find(|(known, _)| *known == name) {
                    *known = value;
                } else if few.len() < FEW {
                    if few.len() == few.capacity() {
                        few.reserve_exact(few.len().max(1));
                    }
                    few.push((name, value));
                } else {
                    *self = ByName::Many(Box::new(few.drain(..).chain([(name, value)]).collect()));
                }
            }
            ByName::Many(many) => drop(many.insert(name, value)),
        }
    }

    /// The names, in no order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let (few, many) = match self {
            ByName::Few(few) => (Some(few), None),
            ByName::Many(many) => (None, Some(many)),
        };
        let few = few.into_iter().flatten().map(|(name, _)| &**name);
        few.chain(many.into_iter().flat_map(|many| many.keys().map(|name| &**name)))
    }

    pub(crate) fn remove(&mut self, name: &str) {
        match self {
            ByName::Few(few) => few.retain(|(known, _)| **known != *name),
            ByName::Many(many) => drop(many.remove(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_names_and_many_are_found_alike() {
        let mut numbers = ByName::default();
        for round in 0..2 {
            for n in 0..3 * FEW {
                numbers.insert(n.to_string().into(), n + round);
            }
        }
        assert!(matches!(numbers, ByName::Many(_)));
        assert_eq!(numbers.names().count(), 3 * FEW);
        assert_eq!((0..3 * FEW).filter(|n| numbers.get(&n.to_string()) == Some(&(n + 1))).count(), 3 * FEW);
        let mut numbers = ByName::default();
        for n in 0..FEW {
            numbers.insert(n.to_string().into(), n);
            numbers.insert(n.to_string().into(), n + 1);
        }
        numbers.remove("2");
        if let Some(three) = numbers.get_mut("3") {
            *three = 30;
        }
        assert!(matches!(numbers, ByName::Few(_)));
        assert_eq!(numbers.names().count(), FEW - 1);
        assert_eq!(
            (numbers.get("1"), numbers.get("2"), numbers.get("3"), numbers.get("9")),
            (Some(&2), None, Some(&30), None)
        );
    }
}
