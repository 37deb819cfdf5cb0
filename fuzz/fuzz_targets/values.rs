#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    alarm_backends::fuzzing::values(data);
});
