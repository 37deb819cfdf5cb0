//! An instance in memory, with what the library keeps there beside it: built, reset and dropped with it.

use std::ops::{Deref, DerefMut};

use super::answer::State;
use crate::once::Ledger;

/// An instance in memory.
pub(crate) struct Living<I> {
    instance: I,
    /// The keys that it has answered under, since the first that it was asked with.
    pub(crate) ledger: Option<Box<Ledger>>,
}

/// The place of an instance, which is empty while there is none in memory.
pub(crate) type Home<I> = Option<Box<Living<I>>>;

/// An instance on its way, if there is one in memory.
pub(crate) type StateOf<I> = State<Living<I>>;

impl<I> Living<I> {
    pub(crate) fn new(instance: I) -> Living<I> {
        Living { instance, ledger: None }
    }
}

impl<I> Deref for Living<I> {
    type Target = I;

    fn deref(&self) -> &I {
        &self.instance
    }
}

impl<I> DerefMut for Living<I> {
    fn deref_mut(&mut self) -> &mut I {
        &mut self.instance
    }
}
