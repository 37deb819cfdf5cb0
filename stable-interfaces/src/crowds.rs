//! Alarms and messages that are due for instances that are busy.
//!
//! Of what is due for one instance one is its *head*: on its way to the instance, waiting for it, or being handled. It takes a
//! place among all that is handled at once. The others, the instance's *crowd*, wait here in their order and take nobody's. A
//! crowd exists while it has a head, or anything waits in it. One without a head is *open*: its first is as due as if it had
//! never waited here, and becomes the head when it is popped. Nothing here reads a clock. The two windows of a shard have crowds of
//! their own, and a head, be it an alarm or a message, is one in both: so the next one is the first of both.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::store::InstanceName;

/// The crowds of one window. `T` orders what waits, and no two of it are equal.
#[derive(Debug)]
pub(crate) struct Crowds<T> {
    crowds: HashMap<InstanceName, Crowd<T>>,
    /// The first of each open crowd.
    open: BTreeMap<T, InstanceName>,
    /// The number of all that wait.
    waiting: usize,
}

#[derive(Debug)]
struct Crowd<T> {
    has_head: bool,
    waiting: BTreeSet<T>,
}

impl<T> Default for Crowds<T> {
    fn default() -> Crowds<T> {
        Crowds { crowds: HashMap::new(), open: BTreeMap::new(), waiting: 0 }
    }
}

impl<T: Ord + Clone> Crowds<T> {
    /// True if something of the instance is on its way to it, or waits here for it.
    pub(crate) fn has(&self, name: &InstanceName) -> bool {
        self.crowds.contains_key(name)
    }

    pub(crate) fn has_head(&self, name: &InstanceName) -> bool {
        self.crowds.get(name).is_some_and(|crowd| crowd.has_head)
    }

    /// Makes something that does not wait here the head of its instance's crowd, unless there is one.
    pub(crate) fn lead(&mut self, name: &InstanceName) -> bool {
        if self.has_head(name) {
            return false;
        }
        self.change(name, |crowd| crowd.has_head = true);
        true
    }

    /// Has something wait for its instance.
    pub(crate) fn wait(&mut self, name: &InstanceName, what: T) {
        self.waiting += usize::from(self.change(name, |crowd| crowd.waiting.insert(what)));
    }

    /// Removes something that waits.
    pub(crate) fn remove(&mut self, name: &InstanceName, what: &T) {
        self.waiting -= usize::from(self.change(name, |crowd| crowd.waiting.remove(what)));
    }

    /// The instance is done with the head of its crowd.
    pub(crate) fn head_ended(&mut self, name: &InstanceName) {
        self.change(name, |crowd| crowd.has_head = false);
    }

    /// The first that waits in an open crowd.
    pub(crate) fn first(&self) -> Option<&T> {
        self.open.keys().next()
    }

    /// Takes the first that waits in an open crowd, and makes it that crowd's head.
    pub(crate) fn pop_first(&mut self) -> Option<T> {
        let (first, name) = self.open.first_key_value()?;
        let (first, name) = (first.clone(), name.clone());
        self.remove(&name, &first);
        self.lead(&name);
        Some(first)
    }

    /// The number of all that wait here, in open crowds or not.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Changes a crowd, which is there for that and stays if it is needed, and lists it if it is open.
    fn change<R>(&mut self, name: &InstanceName, change: impl FnOnce(&mut Crowd<T>) -> R) -> R {
        let crowd =
            self.crowds.entry(name.clone()).or_insert_with(|| Crowd { has_head: false, waiting: BTreeSet::new() });
        if let Some(first) = crowd.waiting.first() {
            self.open.remove(first);
        }
        let result = change(crowd);
        match crowd.waiting.first() {
            _ if crowd.has_head => {}
            Some(first) => _ = self.open.insert(first.clone(), name.clone()),
            None => _ = self.crowds.remove(name),
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(instance: &str) -> InstanceName {
        InstanceName { interface: "probe".into(), instance: instance.into() }
    }

    fn pop(crowds: &mut Crowds<u32>) -> Vec<u32> {
        std::iter::from_fn(|| crowds.pop_first()).collect()
    }

    #[test]
    fn one_leads_and_the_others_wait_until_the_instance_is_done_with_it() {
        let (mut crowds, slow, other) = (Crowds::default(), name("slow"), name("other"));
        assert!(crowds.lead(&slow));
        assert!(!crowds.lead(&slow), "there is one");
        assert!(crowds.lead(&other), "each instance has its own");
        for what in [5, 3, 4] {
            crowds.wait(&slow, what);
        }
        crowds.wait(&other, 1);
        assert!(pop(&mut crowds).is_empty());
        crowds.head_ended(&slow);
        assert_eq!(pop(&mut crowds), [3], "the first of them, which leads now");
        crowds.head_ended(&other);
        crowds.head_ended(&slow);
        assert_eq!(crowds.first(), Some(&1));
        assert_eq!(pop(&mut crowds), [1, 4], "in order over all instances");
    }

    #[test]
    fn what_comes_by_another_way_leads_a_crowd_without_a_head() {
        let (mut crowds, slow) = (Crowds::default(), name("slow"));
        crowds.lead(&slow);
        crowds.wait(&slow, 7);
        crowds.head_ended(&slow);
        assert!(crowds.lead(&slow));
        assert!(pop(&mut crowds).is_empty());
        crowds.head_ended(&slow);
        assert_eq!(pop(&mut crowds), [7]);
    }

    #[test]
    fn what_is_removed_while_it_waits_is_not_popped_and_holds_up_nobody() {
        let (mut crowds, slow) = (Crowds::default(), name("slow"));
        crowds.lead(&slow);
        for what in 1..=4 {
            crowds.wait(&slow, what);
        }
        crowds.remove(&slow, &2);
        crowds.head_ended(&slow);
        crowds.remove(&slow, &1);
        assert_eq!(crowds.waiting(), 2);
        assert_eq!(pop(&mut crowds), [3]);
        crowds.head_ended(&slow);
        crowds.remove(&slow, &4);
        crowds.remove(&slow, &4);
        assert_eq!((crowds.waiting(), crowds.first()), (0, None));
    }

    #[test]
    fn nothing_is_kept_of_a_crowd_that_has_gone() {
        let (mut crowds, slow) = (Crowds::default(), name("slow"));
        crowds.lead(&slow);
        crowds.wait(&slow, 1);
        crowds.head_ended(&slow);
        assert_eq!(pop(&mut crowds), [1]);
        crowds.head_ended(&slow);
        crowds.head_ended(&slow);
        assert!(!crowds.has(&slow) && crowds.crowds.is_empty() && crowds.open.is_empty());
        assert_eq!(crowds.waiting(), 0);
    }
}
