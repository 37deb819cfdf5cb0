//! The conformance suite on the store in memory, alone and through a wrapper that does nothing.

mod plain {
    use stable_interfaces::MemoryStore;

    stable_interfaces::testing::store_tests!(|| async { MemoryStore::new() });
}

mod spread {
    use std::sync::Arc;

    use stable_interfaces::MemoryStore;
    use stable_interfaces::clock::SystemClock;

    stable_interfaces::testing::store_tests!(|| async { MemoryStore::spread(Arc::new(SystemClock::default())) });
}

mod through_a_fault_store_without_faults {
    use std::sync::Arc;

    use stable_interfaces::MemoryStore;
    use stable_interfaces::testing::FaultStore;

    stable_interfaces::testing::store_tests!(|| async { FaultStore::new(Arc::new(MemoryStore::new())) });
}
