//! Settings that are given once, when the host starts.
//!
//! Interfaces are registered before that, and share the host with it, so that it does not matter what was set first. Nothing reads a
//! setting before it is given.

use std::ops::Deref;
use std::sync::OnceLock;

use crate::sync::Arc;

/// One such setting, shared by all who use it.
#[derive(Debug)]
pub(crate) struct Setting<T: ?Sized>(OnceLock<Arc<T>>);

impl<T: ?Sized> Setting<T> {
    pub(crate) fn open() -> Setting<T> {
        Setting(OnceLock::new())
    }

    /// Sets it, for good.
    pub(crate) fn give(&self, value: Arc<T>) {
        // A host is started once: `start` consumes the builder.
        drop(self.0.set(value));
    }

    /// Another reference to what it was set to; `None` before that.
    pub(crate) fn get(&self) -> Option<Arc<T>> {
        self.0.get().cloned()
    }

    /// Another reference to what it was set to.
    pub(crate) fn share(&self) -> Arc<T> {
        self.0.get().expect(GIVEN).clone()
    }
}

const GIVEN: &str = "a host has its settings before anything of it runs";

impl<T: ?Sized> Deref for Setting<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.0.get().expect(GIVEN)
    }
}
