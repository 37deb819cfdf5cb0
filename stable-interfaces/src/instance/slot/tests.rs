//! Slots of a host in memory, looked into.

use super::*;
use crate::fleet::hash_id;
use crate::testing::{Fault, FaultStore, Method, SimClock};
use crate::{Context, ContextError, Handle, Host, MemoryStore, Timestamp};

struct Notes;

impl StableInterface for Notes {
    const NAME: &'static str = "notes";
    type Error = ContextError;
}

#[derive(Debug)]
struct Note(u64);

impl Handle<Note> for Notes {
    type Reply = ();

    async fn handle(&mut self, cx: &mut Context, Note(n): Note) -> Result<(), ContextError> {
        cx.put("n", &n)
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_instance_keeps_no_commit_in_memory_that_is_durable() {
    let mut host = Host::local(MemoryStore::new());
    let notes = host.interface(|_| Notes).register().expect("its name is one");
    let host = host.start().await.expect("the store is there");
    for n in 0..3 {
        notes.request("a", Note(n)).await.expect("it is written");
        let slot = notes.core.table.get("a", hash_id("a")).expect("it is idle");
        // The committer lets go of a commit just after it has told whoever waits for it.
        let holds = || slot.machine.lock().kept().1 > 0;
        for _ in 0..100 {
            if !holds() {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert!(!holds(), "after {n}");
    }
    drop(host);
}

#[tokio::test(start_paused = true)]
async fn what_an_instance_has_under_way_is_all_that_is_kept_for_its_reads_however_long_it_is_busy() {
    let clock: Arc<dyn crate::clock::Clock> = Arc::new(SimClock::new(Timestamp::UNIX_EPOCH));
    let store = FaultStore::seeded(Arc::new(MemoryStore::with_clock(clock.clone())), clock.clone(), 1);
    let mut host = Host::local(store.clone()).clock(clock.clone());
    let notes = host.interface(|_| Notes).register().expect("its name is one");
    let host = host.start().await.expect("the store is there");
    // The next is always queued before the last one is answered.
    store.set_chance(Method::Commit, Fault::Delay(Duration::from_millis(10)), 1.0);
    let mut before = None;
    for n in 0..50 {
        let notes_of_it = notes.clone();
        let next = tokio::spawn(async move { notes_of_it.request("a", Note(n)).await });
        clock.sleep(Duration::from_millis(7)).await;
        let slot = notes.core.table.get("a", hash_id("a")).expect("it is busy");
        let kept = slot.machine.lock().kept().0;
        assert!((1..=4).contains(&kept), "{kept} commits are kept after {n}");
        if let Some(before) = before.replace(next) {
            before.await.expect("it ends").expect("it is written");
        }
    }
    drop(host);
}
