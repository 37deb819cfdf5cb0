//! The order of what instances have: by interface, instance and ID, whoever holds the three texts.
//!
//! A key of references finds what is stored under texts of its own, so that nothing is copied to look for it.

use std::borrow::Borrow;
use std::cmp::Ordering;

use crate::store::InstanceName;
use crate::sync::Arc;

/// An item of an instance, or the name of one.
pub(super) trait Named {
    /// Interface, instance and ID of the item, whose bytes have the order of their texts.
    fn parts(&self) -> (&[u8], &[u8], &[u8]);
}

/// The parts of the item `id` of an instance.
pub(super) fn named<'a>(name: &'a InstanceName, id: &'a str) -> (&'a [u8], &'a [u8], &'a [u8]) {
    (name.interface.as_bytes(), name.instance.as_bytes(), id.as_bytes())
}

impl Named for (&InstanceName, &Arc<str>) {
    fn parts(&self) -> (&[u8], &[u8], &[u8]) {
        named(self.0, self.1)
    }
}

/// The name of an item: the identity of a message, or the place of a storage value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Item {
    pub(super) name: InstanceName,
    pub(super) id: Arc<str>,
}

impl Item {
    pub(super) fn new(name: &InstanceName, id: &Arc<str>) -> Item {
        Item { name: name.clone(), id: id.clone() }
    }
}

impl Named for Item {
    fn parts(&self) -> (&[u8], &[u8], &[u8]) {
        named(&self.name, &self.id)
    }
}

impl<'a> Borrow<dyn Named + 'a> for Item {
    fn borrow(&self) -> &(dyn Named + 'a) {
        self
    }
}

/// A shared row in the order of its name.
pub(super) struct ByName<T>(pub(super) Arc<T>);

impl<T: Named> Named for ByName<T> {
    fn parts(&self) -> (&[u8], &[u8], &[u8]) {
        self.0.parts()
    }
}

impl<'a, T: Named + 'a> Borrow<dyn Named + 'a> for ByName<T> {
    fn borrow(&self) -> &(dyn Named + 'a) {
        self
    }
}

impl<T: Named> Ord for ByName<T> {
    fn cmp(&self, other: &ByName<T>) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}

impl<T: Named> PartialOrd for ByName<T> {
    fn partial_cmp(&self, other: &ByName<T>) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Named> PartialEq for ByName<T> {
    fn eq(&self, other: &ByName<T>) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T: Named> Eq for ByName<T> {}

impl Ord for dyn Named + '_ {
    fn cmp(&self, other: &(dyn Named + '_)) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}

impl PartialOrd for dyn Named + '_ {
    fn partial_cmp(&self, other: &(dyn Named + '_)) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Named + '_ {
    fn eq(&self, other: &(dyn Named + '_)) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for dyn Named + '_ {}
