//! The quick run of the fault matrix.

use std::process::Command;

#[test]
fn no_fault_makes_the_tunnel_lie_or_die() {
    // The relay of some rows is placed in this home folder.
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_reliability"));
    let output =
        command.args(["matrix", "--quick"]).env("HOME", home.path()).env_remove("XDG_CACHE_HOME").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(!home.path().join(".cache/aws-ssm-forward").exists(), "an ephemeral relay leaves no file");
}
