#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ssm_proto::fuzzing::relay_link(data, std::time::Instant::now()));
