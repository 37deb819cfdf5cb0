//! Servers for tests, benchmarks and examples; not for programs people run. What fails here panics, as a test should.

pub mod servers;
