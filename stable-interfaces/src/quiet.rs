//! The application's code, run and dropped in such a way that a panic of it ends there.
//!
//! Messages, replies, states, errors, closures with what they captured, tasks and wakers are the application's, and each may
//! panic where it is called, shown or dropped. Such a panic costs its own message at most: it never reaches the task of this
//! library, or of another sender, that happens to be there. The payload of a panic is the application's too, so it is dropped
//! in here as well.
//!
//! None of this is done under a lock of ours: any of it may look at its own instance, or at another one.

use std::any::Any;
use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::mem::needs_drop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Poll, Waker};

/// Runs code of the application; the text of its panic if it panics.
#[inline]
pub(crate) fn guarded<T>(code: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(code)).map_err(end_of_panic)
}

/// Drops the payload of a panic and gives its text.
#[cold]
fn end_of_panic(payload: Box<dyn Any + Send>) -> String {
    let text = panic_text(&*payload);
    // The payload of a panic while that is dropped is not looked at any more: it may go on like this for ever.
    if let Err(next) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(next);
    }
    text
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a value that is not text").to_owned()
}

/// Drops a value of the application.
#[inline]
pub(crate) fn drop_quietly<T>(value: T) {
    if needs_drop::<T>()
        && let Err(panic) = guarded(|| drop(value))
    {
        tracing::warn!(what = std::any::type_name::<T>(), %panic, "a panic while something of the application was dropped");
    }
}

/// The text of an error of the application, or that it has none.
pub(crate) fn shown(error: &dyn Display) -> String {
    // In the alternate form an `anyhow::Error` shows its causes.
    text_of(|| format!("{error:#}"))
}

/// The text that `show` makes of an error of the application, or that it has none.
pub(crate) fn text_of(show: impl FnOnce() -> String) -> String {
    guarded(show).unwrap_or_else(|panic| format!("an error that panicked when it was shown: {panic}"))
}

/// Wakes a task, of whatever executor.
pub(crate) fn wake(waker: Waker) {
    if let Err(panic) = guarded(|| waker.wake()) {
        tracing::warn!(%panic, "a panic while a task was woken");
    }
}

/// Runs a future of the application to its end; the text of its panic if it panics.
pub(crate) async fn run<F: Future + Unpin>(future: F) -> Result<F::Output, String> {
    let mut future = Quiet::new(future);
    poll_fn(|task| match &mut future.0 {
        Some(running) => match guarded(|| Pin::new(running).poll(task)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(panic) => Poll::Ready(Err(panic)),
        },
        None => Poll::Pending,
    })
    .await
}

/// A value of the application, or none. It is dropped quietly, wherever that happens: also while a panic unwinds.
#[derive(Debug)]
pub(crate) struct Quiet<T>(Option<T>);

impl<T> Quiet<T> {
    #[inline]
    pub(crate) fn new(value: T) -> Quiet<T> {
        Quiet(Some(value))
    }

    #[inline]
    pub(crate) const fn none() -> Quiet<T> {
        Quiet(None)
    }

    #[inline]
    pub(crate) fn is_some(&self) -> bool {
        self.0.is_some()
    }

    #[inline]
    pub(crate) fn is_none(&self) -> bool {
        self.0.is_none()
    }

    #[inline]
    pub(crate) fn take(&mut self) -> Quiet<T> {
        Quiet(self.0.take())
    }

    #[inline]
    pub(crate) fn as_ref(&self) -> Option<&T> {
        self.0.as_ref()
    }

    #[inline]
    pub(crate) fn as_mut(&mut self) -> Option<&mut T> {
        self.0.as_mut()
    }

    /// The place of the value. What is put there is dropped quietly, what is taken from there is not.
    #[inline]
    pub(crate) fn place(&mut self) -> &mut Option<T> {
        &mut self.0
    }

    /// The value itself, which is no longer dropped quietly.
    #[inline]
    pub(crate) fn into_inner(mut self) -> Option<T> {
        self.0.take()
    }
}

impl<T> Default for Quiet<T> {
    fn default() -> Quiet<T> {
        Quiet::none()
    }
}

impl<T> Drop for Quiet<T> {
    #[inline]
    fn drop(&mut self) {
        if needs_drop::<T>()
            && let Some(value) = self.0.take()
        {
            drop_quietly(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Panics when it is dropped, with a payload that does the same, `left` times.
    struct Bomb(u32);

    impl Drop for Bomb {
        #[allow(clippy::panic, reason = "that is what it is for")]
        fn drop(&mut self) {
            if self.0 > 0 {
                std::panic::panic_any(Bomb(self.0 - 1));
            }
        }
    }

    #[test]
    fn a_panic_of_the_application_ends_where_it_is_called_whatever_its_payload_does() {
        assert_eq!(guarded(|| 1), Ok(1));
        assert_eq!(guarded(|| panic!("no {}", 1)), Err::<(), _>("no 1".to_owned()));
        for depth in 0..4 {
            assert!(guarded(|| std::panic::panic_any(Bomb(depth))).is_err_and(|text| text.contains("not text")));
        }
    }

    #[test]
    fn what_is_quiet_may_panic_also_while_a_panic_unwinds() {
        drop(Quiet::new(Bomb(2)));
        let unwound = guarded(|| {
            let _one = Quiet::new(Bomb(1));
            let _other = [Quiet::new(Bomb(1)), Quiet::new(Bomb(2))];
            panic!("the first");
        });
        assert_eq!(unwound, Err::<(), _>("the first".to_owned()));
    }
}
