#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ssm_proto::fuzzing::agent_handshake(data, std::time::Instant::now()));
