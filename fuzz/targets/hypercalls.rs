#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ring3_hypervisor::tests::fuzz::targets::hypercalls(data));
