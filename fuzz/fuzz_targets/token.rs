#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    callback_flows::fuzzing::token(data);
});
