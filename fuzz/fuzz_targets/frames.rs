#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    stable_interfaces::fuzzing::frames(data);
});
