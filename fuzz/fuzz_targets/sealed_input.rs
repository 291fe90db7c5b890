#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ssm_proto::fuzzing::sealed_input(data, std::time::Instant::now()));
