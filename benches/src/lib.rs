//! Side-by-side measurements of stable-interfaces and the libraries next to it.
//!
//! Only ratios within one run mean anything: machines differ, and one machine differs from minute to minute. So every side of a
//! comparison runs in the same process, in short turns, on the system's allocator, and the median of the turns counts. What a
//! process needs (memory, processor time while idle) is measured in a fresh process for each side.

pub mod alarms;
pub mod commits;
pub mod failures;
pub mod flows;
pub mod links;
pub mod measure;
pub mod moves;
pub mod other_process;
pub mod overload;
pub mod pairs;
pub mod peers;
pub mod queues;
pub mod report;
pub mod runner;
pub mod stores;
pub mod workload;
