//! Values that do what they should not where they are dropped or shown.
//!
//! A message, a reply, an error, a state, or what a closure has captured, is the application's, and its `Drop` and `Display` are
//! too: they may panic, or look at the instance they belong to. One that arrives where it was meant to go is
//! [harmless](Odd::arrived) from then on, so that what acts is always dropped, or shown, by the library.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Shared;

/// Conduct of an odd value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    Panics,
    LooksBack,
}

/// An odd value. Nothing holds more than one: of two panics at once Rust makes an end of the process.
pub struct Odd {
    habit: Habit,
    shared: Arc<Shared>,
    /// The instance it belongs to.
    id: Box<str>,
    has_arrived: AtomicBool,
}

impl Odd {
    /// One value in eight is odd.
    pub(super) fn some(shared: &Arc<Shared>, id: &str) -> Option<Odd> {
        let random = shared.life.random();
        let habit = match random.below(16) {
            0 => Habit::Panics,
            1 => Habit::LooksBack,
            _ => return None,
        };
        Some(Odd { habit, shared: shared.clone(), id: id.into(), has_arrived: AtomicBool::new(false) })
    }

    /// It does nothing any more.
    pub(super) fn arrived(&self) {
        self.has_arrived.store(true, Ordering::Relaxed);
    }

    fn act(&self, where_: &str) {
        // A second panic while the first unwinds is the end of the process.
        if self.has_arrived.load(Ordering::Relaxed) || std::thread::panicking() {
            return;
        }
        match self.habit {
            Habit::Panics => {
                self.shared.life.fault(&format!("panic of a value that was {where_}"));
                // No message is printed for this one.
                std::panic::resume_unwind(Box::new("an odd value"));
            }
            Habit::LooksBack => {
                self.shared.life.fault(&format!("look back by a value that was {where_}"));
                self.shared.look_at(&self.id);
            }
        }
    }
}

impl Drop for Odd {
    fn drop(&mut self) {
        self.act("dropped");
    }
}

impl fmt::Display for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.act("shown");
        f.write_str("odd")
    }
}

impl fmt::Debug for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Odd").field("habit", &self.habit).finish_non_exhaustive()
    }
}
