//! Stores for [`stable_interfaces`]: one module and one Cargo feature per database.

#[cfg(any(feature = "fjall", feature = "redis"))]
#[cfg_attr(
    not(feature = "fjall"),
    allow(dead_code, reason = "where rows and shards are is kept in such bytes by fjall alone")
)]
mod codec;
#[cfg(feature = "fjall")]
mod fjall;
/// Functions that the fuzz targets try; there for the targets and the tests alone.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod hint;
#[cfg(any(feature = "fjall", feature = "redis"))]
#[cfg_attr(
    not(feature = "redis"),
    allow(dead_code, reason = "entries that find a row by identity are read back by redis alone")
)]
mod ordered;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(any(feature = "fjall", feature = "postgres", feature = "redis"))]
mod steps;
#[cfg(feature = "testing-servers")]
pub mod testing;

#[cfg(feature = "fjall")]
pub use crate::fjall::{FjallStore, FjallStoreBuilder};
#[cfg(feature = "postgres")]
pub use crate::postgres::PostgresStore;
#[cfg(feature = "redis")]
pub use crate::redis::{RedisStore, RedisStoreBuilder};
