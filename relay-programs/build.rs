//! Builds the relay program, so that the command contains it (ARCHITECTURE.md explains why it is done in this way).
//!
//! The program for this machine's kind is built here. Programs for other kinds, and all programs for a release, can be provided as
//! files `ssm-relay-MACHINE` (`x86_64`, `aarch64`) in the folder that the variable `SSM_RELAY_PROGRAMS` names.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

const MACHINES: [&str; 2] = ["x86_64", "aarch64"];
/// The source files of the program.
const SOURCES: [&str; 8] = [
    "../relay/src",
    "../relay/Cargo.toml",
    "../ssm-proto/src/relay",
    "../ssm-proto/src/window.rs",
    "../ssm-proto/src/lib.rs",
    "../ssm-proto/Cargo.toml",
    "../Cargo.toml",
    "../Cargo.lock",
];

fn main() {
    let out = PathBuf::from(variable("OUT_DIR"));
    println!("cargo::rerun-if-env-changed=SSM_RELAY_PROGRAMS");
    let mut code = String::from("&[\n");
    for machine in MACHINES {
        let Some(program) = given(machine).or_else(|| built(machine, &out)) else { continue };
        code += &embed(machine, &program, &out);
    }
    code += "]\n";
    write(&out.join("relay_programs.rs"), code.as_bytes());
}

/// Returns a program that was built before.
fn given(machine: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("SSM_RELAY_PROGRAMS").filter(|folder| !folder.is_empty())?;
    let program = Path::new(&folder).join(format!("ssm-relay-{machine}"));
    println!("cargo::rerun-if-changed={}", program.display());
    program.is_file().then_some(program)
}

/// Builds the program for this machine's kind, statically linked. `None`: it cannot be built here.
fn built(machine: &str, out: &Path) -> Option<PathBuf> {
    let target = variable("TARGET");
    let manifest = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../relay/Cargo.toml");
    if !target.starts_with(machine) || !target.contains("-linux-") || !manifest.is_file() {
        return None;
    }
    SOURCES.iter().for_each(|source| println!("cargo::rerun-if-changed={source}"));
    let mut cargo = Command::new(variable("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--profile", "relay", "--bin", "ssm-relay", "--target", &target]);
    cargo.arg("--manifest-path").arg(&manifest).arg("--target-dir").arg(out.join("relay"));
    // These variables are meant for the build that runs this script: flags, a linter instead of the compiler, another folder.
    for name in ["RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(name);
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags()).env("CARGO_INCREMENTAL", "0");
    let failure = match cargo.output() {
        Ok(output) if output.status.success() => return Some(out.join(format!("relay/{target}/relay/ssm-relay"))),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().replace('\n', " | "),
        Err(error) => error.to_string(),
    };
    // This file does not exist, so the next build tries again.
    println!("cargo::rerun-if-changed={}", out.join("not-built").display());
    println!("cargo::warning=forward --relay will not be available, its program was not built: {failure}");
    None
}

/// Returns the compiler flags. They make the program independent of the machine that builds it, and remove the paths of that
/// machine.
fn flags() -> String {
    let home = std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME").map(|home| home + "/.cargo"));
    let workspace = Path::new(&variable("CARGO_MANIFEST_DIR")).join("..");
    let workspace = workspace.canonicalize().unwrap_or(workspace);
    let mut flags = format!("-Ctarget-feature=+crt-static\x1f--remap-path-prefix={}=.", workspace.display());
    if let Ok(home) = home {
        flags += &format!("\x1f--remap-path-prefix={home}=/cargo");
    }
    flags
}

/// Compresses a program and returns its entry in the list.
fn embed(machine: &str, program: &Path, out: &Path) -> String {
    let bytes = std::fs::read(program).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    let compressed = gzip.write_all(&bytes).and_then(|()| gzip.finish()).expect("memory takes it");
    let file = out.join(format!("ssm-relay-{machine}.gz"));
    write(&file, &compressed);
    let file = file.display().to_string();
    format!("RelayProgram {{ machine: {machine:?}, sha256: {digest:?}, gzip: include_bytes!({file:?}) }},\n")
}

fn write(file: &Path, bytes: &[u8]) {
    std::fs::write(file, bytes).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
