//! Tools for tests, of this library and of programs made with it. Behind the feature `testing`.
//!
//! Nothing here is for programs people run: the tools panic where a test should fail.

pub mod conformance;
mod dump;
mod fault;
mod history;
mod network;
mod sim;
mod simulation;
mod witness;

/// Makes a `#[test]` of every [conformance case](conformance), each on a fresh store.
///
/// The argument is called once per test: a closure that gives a future that gives a [`Fixture`](conformance::Fixture), that
/// is a store, or `(guard, store)` where `guard` lives until the test has ended. Each test runs in a runtime of its own with
/// two threads and real time. The tests' names are the cases' names, so invoke it in a module of its own for each store.
///
/// ```
/// mod memory {
///     use stable_interfaces::MemoryStore;
///     stable_interfaces::testing::store_tests!(|| async { MemoryStore::new() });
/// }
/// # fn main() {}
/// ```
pub use crate::__store_tests as store_tests;
pub use dump::{ShardDump, StoreDump};
pub use fault::{Answer, Call, Fault, FaultStore, Method};
pub use history::{Began, End, History, Invariant, Look, Outcome, Pending, Setting, Violation, What};
pub use network::{MemoryNetwork, MemoryTransport};
pub use sim::{SeededRandom, SimClock};
pub use simulation::{Client, Counts, Faults, Life, Outside, Run, Simulation, Site, Workload};
pub use witness::Witness;
