//! Every lock, atomic and channel of this crate comes through here.
//!
//! One place, so that a schedule explorer can stand in for them without touching the code that uses them.

pub(crate) use parking_lot::{Mutex, MutexGuard};
pub(crate) use std::sync::Arc;
pub(crate) use std::sync::atomic;
pub(crate) use tokio::sync::{Notify, mpsc, oneshot};
