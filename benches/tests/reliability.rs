//! The quick run of the fault matrix.

use std::process::Command;

#[test]
fn no_fault_makes_the_tunnel_lie_or_die() {
    let output = Command::new(env!("CARGO_BIN_EXE_reliability")).args(["matrix", "--quick"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
