#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = callback_flows::fuzzing::last_event_id(data);
});
