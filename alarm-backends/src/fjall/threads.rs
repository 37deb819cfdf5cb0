//! The threads that a store works on.
//!
//! On a clock of real time they are the store's own, so that it goes on however many of tokio's the application keeps busy. There is a fixed
//! number for each [`Purpose`], so that neither large pages nor many posts are in a renewal's way, and they end with the store, each after
//! the call it is in. What waits for them is bounded by the callers, each of which waits for one call. On a simulated clock
//! calls go to tokio's blocking threads, which hold a paused clock back meanwhile.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use parking_lot::Mutex;
use stable_interfaces::store::BoxError;
use tokio::sync::oneshot;

/// Work for a thread.
type Job = Box<dyn FnOnce() + Send>;

/// The purpose of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Claims and leases: never behind other calls.
    Ownership,
    /// Writes. One is encoded while another waits for the disk.
    Writing,
    Reading,
    /// Keeping files few, behind nobody's back and in nobody's way.
    Tidying,
}

impl Purpose {
    pub(super) const ALL: [Purpose; 4] = [Purpose::Ownership, Purpose::Writing, Purpose::Reading, Purpose::Tidying];

    pub(super) fn threads(self) -> usize {
        match self {
            Purpose::Ownership | Purpose::Tidying => 1,
            Purpose::Writing => 2,
            // Of reads many wait for the disk at once.
            Purpose::Reading => std::thread::available_parallelism().map_or(4, usize::from).clamp(4, 16),
        }
    }
}

/// The reason why a call has no result.
#[derive(Debug)]
pub(super) enum NoResult {
    /// The call panicked, with this message.
    Panicked(String),
    /// The call's thread has ended.
    Gone(BoxError),
}

/// The threads that calls are made on.
#[derive(Debug)]
pub(super) enum Threads {
    /// The store's own threads, by [`Purpose`]. Dropping these ends them.
    Own([Sender<Job>; Purpose::ALL.len()]),
    /// The blocking threads of tokio.
    Runtime,
}

impl Threads {
    /// Starts threads of the store's own.
    ///
    /// # Errors
    /// If the operating system has none to give.
    pub(super) fn start() -> std::io::Result<Threads> {
        let mut queues = Vec::with_capacity(Purpose::ALL.len());
        for purpose in Purpose::ALL {
            let (sender, receiver) = mpsc::channel();
            let receiver = Arc::new(Mutex::new(receiver));
            for _ in 0..purpose.threads() {
                let receiver = receiver.clone();
                std::thread::Builder::new().name("fjall-store".to_owned()).spawn(move || serve(&receiver))?;
            }
            queues.push(sender);
        }
        Ok(Threads::Own(queues.try_into().expect("there is a queue for each purpose")))
    }

    /// Does `work` on a thread of that purpose, unless nobody waits for it any more when its turn comes.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        purpose: Purpose,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoResult> {
        let Threads::Own(queues) = self else {
            return tokio::task::spawn_blocking(work).await.map_err(|error| match error.try_into_panic() {
                Ok(payload) => NoResult::Panicked(message(payload)),
                Err(error) => NoResult::Gone(error.into()),
            });
        };
        let (answer, done) = oneshot::channel();
        let job: Job = Box::new(move || {
            if !answer.is_closed() {
                // Whatever the work holds is dropped before the answer is given: whoever has it may open the directory anew.
                let result = catch_unwind(AssertUnwindSafe(work));
                let _ = answer.send(result.map_err(message));
            }
        });
        queues[purpose as usize].send(job).map_err(|_| NoResult::Gone("the store's threads have ended".into()))?;
        match done.await {
            Ok(result) => result.map_err(NoResult::Panicked),
            Err(gone) => Err(NoResult::Gone(gone.into())),
        }
    }

    /// Has `work` done at some time, if the store is there until then.
    pub(super) fn later(&self, purpose: Purpose, work: impl FnOnce() + Send + 'static) {
        match self {
            // Its only failure is that the threads have ended, with the store.
            Threads::Own(queues) => drop(queues[purpose as usize].send(Box::new(work))),
            Threads::Runtime => drop(tokio::task::spawn_blocking(work)),
        }
    }
}

/// Does what comes, until nobody can send any more.
fn serve(jobs: &Mutex<Receiver<Job>>) {
    loop {
        // A statement of its own: the next thread waits for work while this one does some.
        let job = jobs.lock().recv();
        let Ok(job) = job else { return };
        // What a job holds may panic when it is dropped; the thread is for others, too.
        let _ = catch_unwind(AssertUnwindSafe(job));
    }
}

/// The text of a panic.
pub(super) fn message(payload: Box<dyn std::any::Any + Send>) -> String {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a text".to_owned())
}
