#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ssm_proto::fuzzing::session_pair(data, std::time::Instant::now()));
