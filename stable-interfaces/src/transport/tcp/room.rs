//! The room for links that were let in, and who has to go when there is none left.
//!
//! Whoever comes is let in, for it may be one that matters, unless something is under way on every link. Room is made by a link on which nothing is: by
//! one that has never asked anything, though it had the time to, or else by the one that has asked nothing for longest. It is told goodbye, so that nothing
//! of it is lost, and may call again.

use std::cmp::Reverse;
use std::collections::VecDeque;

use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, Notify};

/// The place of one link, and all that others have to do with it.
#[derive(Debug)]
pub(super) struct Seat {
    /// The requests that were taken and not answered.
    pub(super) under_way: AtomicUsize,
    /// A notice for when there is something to write, or the link has to go.
    pub(super) wake: Notify,
    /// [`NEW`], or else [`ASKED`] and the number of looks since, or else [`NEVER`].
    quiet: AtomicU32,
    has_to_go: AtomicBool,
}

/// The quiet of a link that has not been looked at, and on which nothing was asked so far.
const NEW: u32 = 0;
/// The quiet of a link on which something was asked since the last look.
const ASKED: u32 = 1;
/// The quiet of a link on which nothing was ever asked, and that has been looked at.
const NEVER: u32 = u32::MAX;

impl Seat {
    fn new() -> Seat {
        let (under_way, quiet) = (AtomicUsize::new(0), AtomicU32::new(NEW));
        Seat { under_way, wake: Notify::new(), quiet, has_to_go: AtomicBool::new(false) }
    }

    /// Counts requests that are taken.
    pub(super) fn takes(&self, requests: usize) {
        self.under_way.fetch_add(requests, Ordering::Relaxed);
        // Mostly it is so already.
        if self.quiet.load(Ordering::Relaxed) != ASKED {
            self.quiet.store(ASKED, Ordering::Relaxed);
        }
    }

    /// The link is looked at.
    pub(super) fn is_looked_at(&self) {
        let quiet = match self.quiet.load(Ordering::Relaxed) {
            NEW => NEVER,
            quiet => quiet.saturating_add(1),
        };
        self.quiet.store(quiet, Ordering::Relaxed);
    }

    /// The number of looks since something was asked, and one more. A link that has just come counts like one that asks: it may be about to.
    fn quiet(&self) -> u32 {
        self.quiet.load(Ordering::Relaxed).max(ASKED)
    }

    /// Tells whether another link has its place.
    pub(super) fn has_to_go(&self) -> bool {
        self.has_to_go.load(Ordering::Acquire)
    }
}

/// The links that were let in and have not been told to go.
#[derive(Debug)]
pub(super) struct Room {
    most: usize,
    /// In the order in which they came.
    seats: Mutex<VecDeque<Arc<Seat>>>,
}

impl Room {
    pub(super) fn new(most: usize) -> Room {
        Room { most, seats: Mutex::default() }
    }

    /// Lets one in, if need be in the place of another; `None` if there is none that could go.
    pub(super) fn take(&self) -> Option<Arc<Seat>> {
        let mut seats = self.seats.lock();
        if seats.len() >= self.most {
            let idle = seats.iter().enumerate().filter(|(_, seat)| seat.under_way.load(Ordering::Acquire) == 0);
            // Of those that are equal it is the one that came first.
            let (at, _) = idle.min_by_key(|(_, seat)| Reverse(seat.quiet()))?;
            let gone = seats.remove(at)?;
            gone.has_to_go.store(true, Ordering::Release);
            gone.wake.notify_one();
        }
        let seat = Arc::new(Seat::new());
        seats.push_back(seat.clone());
        Some(seat)
    }

    /// A link has ended.
    pub(super) fn give_back(&self, seat: &Arc<Seat>) {
        self.seats.lock().retain(|other| !Arc::ptr_eq(other, seat));
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    fn full(most: usize) -> (Room, Vec<Arc<Seat>>) {
        let room = Room::new(most);
        let seats = (0..most).map(|_| room.take().expect("there is room")).collect();
        (room, seats)
    }

    fn gone(seats: &[Arc<Seat>]) -> Vec<usize> {
        (0..seats.len()).filter(|&at| seats[at].has_to_go()).collect()
    }

    /// Something was asked and answered.
    fn asks(seat: &Seat) {
        seat.takes(1);
        seat.under_way.fetch_sub(1, Ordering::Release);
    }

    #[test]
    fn room_is_made_by_those_that_never_asked_in_their_order_and_then_by_the_one_that_has_been_quiet_for_longest() {
        let (room, seats) = full(4);
        assert!(gone(&seats).is_empty(), "there was room for all of them");
        asks(&seats[0]);
        seats.iter().for_each(|seat| seat.is_looked_at());
        (0..100).for_each(|_| seats[0].is_looked_at());
        asks(&seats[2]);
        let more: Vec<_> = (0..2).map(|_| room.take().expect("another one goes")).collect();
        assert_eq!(gone(&seats), [1, 3]);
        more.iter().for_each(|seat| asks(seat));
        room.take().expect("another one goes");
        assert_eq!(gone(&seats), [0, 1, 3]);
        assert!(gone(&more).is_empty());
    }

    #[test]
    fn one_that_has_just_come_stays_before_those_that_have_been_quiet_and_goes_before_them_once_it_had_the_time_to_ask()
    {
        let (room, seats) = full(3);
        for seat in &seats[1..] {
            asks(seat);
            seat.is_looked_at();
        }
        let new = room.take().expect("another one goes");
        assert_eq!(gone(&seats), [1], "the first has just come too");
        new.is_looked_at();
        room.take().expect("another one goes");
        assert!(new.has_to_go());
        assert_eq!(gone(&seats), [1]);
        // Of those that ask and those that have just come it is the one that came first.
        asks(&seats[2]);
        room.take().expect("another one goes");
        assert_eq!(gone(&seats), [0, 1]);
    }

    #[test]
    fn a_link_on_which_something_is_under_way_makes_room_for_nobody() {
        let (room, seats) = full(2);
        seats.iter().for_each(|seat| seat.takes(1));
        (0..100).for_each(|_| seats[0].is_looked_at());
        assert!(room.take().is_none());
        seats[1].under_way.fetch_sub(1, Ordering::Release);
        assert!(room.take().is_some());
        assert_eq!(gone(&seats), [1]);
    }

    #[test]
    fn the_place_of_a_link_that_has_ended_is_free() {
        let (room, seats) = full(2);
        room.give_back(&seats[1]);
        room.take().expect("there is room");
        assert!(gone(&seats).is_empty());
        // As one that was told to go gives back its place, which another one has.
        room.take().expect("another one goes");
        room.give_back(&seats[0]);
        assert_eq!(room.seats.lock().len(), 2);
    }
}
