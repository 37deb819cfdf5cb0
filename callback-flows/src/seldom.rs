//! Parts that few flows have: a flow that waits, for as long as years, is to be small.

use std::ops::Deref;

/// A value that takes no memory for as long as nobody has changed it.
#[derive(Debug)]
pub(crate) struct Seldom<T>(Option<Box<T>>);

/// A value that nobody has changed yet.
pub(crate) trait Unchanged: Default + 'static {
    const UNCHANGED: &'static Self;
}

impl<T> Default for Seldom<T> {
    fn default() -> Seldom<T> {
        Seldom(None)
    }
}

impl<T: Unchanged> Deref for Seldom<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or(T::UNCHANGED)
    }
}

impl<T: Unchanged> Seldom<T> {
    /// The value, to be changed. From here on it takes its memory.
    pub(crate) fn made(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }

    /// The value, if it may have been changed: to take something out of it.
    pub(crate) fn there(&mut self) -> Option<&mut T> {
        self.0.as_deref_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Names {
        names: Vec<&'static str>,
    }

    impl Unchanged for Names {
        const UNCHANGED: &'static Names = &Names { names: Vec::new() };
    }

    #[test]
    fn a_value_is_made_by_the_first_change_and_reads_as_its_default_before() {
        let mut names = Seldom::<Names>::default();
        assert!(names.there().is_none() && names.names.is_empty());
        names.made().names.push("a");
        assert_eq!(names.names, ["a"]);
        assert_eq!(names.there().and_then(|names| names.names.pop()), Some("a"));
    }
}
