//! `cp`: the copied files, the output and the exit codes. `tests/real/copying.py` tests it with faults, and with other programs on
//! the node.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use crate::common::{Cli, Ended, run};

fn cp(args: &[&str]) -> Ended {
    run(&[&["cp", "--local"], args].concat(), &[])
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Returns random bytes, followed by sequences that the agent's filter damages.
fn sample(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
    bytes.extend(b"\xef\xbf\xbd\xef\xbf");
    bytes
}

#[test]
fn a_file_goes_there_and_back_and_its_digest_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let [original, there, back] = ["original", "there", "back"].map(|name| directory.path().join(name));
    fs::write(&original, sample(3_000_000)).unwrap();
    let remote = format!(":{}", text(&there));
    for (from, to) in [(text(&original), remote.as_str()), (&remote, text(&back))] {
        let ended = cp(&[from, to]);
        assert_eq!(ended.code, 0, "{ended:#?}");
        assert_eq!(ended.stdout, [""; 0]);
        let [line] = ended.stderr.as_slice() else { panic!("{ended:#?}") };
        assert!(line.starts_with("copied 1 file, 2.86 MiB") && line.contains("SHA-256"), "{line}");
    }
    assert!(fs::read(&original).unwrap() == fs::read(&back).unwrap());
}

#[test]
fn a_tree_keeps_names_links_permissions_and_times() {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir_all(tree.join("a b\n'\"/empty")).unwrap();
    fs::write(tree.join("a b\n'\"/-rf"), "content").unwrap();
    std::os::unix::fs::symlink("/nowhere", tree.join("link")).unwrap();
    fs::set_permissions(tree.join("a b\n'\"/-rf"), fs::Permissions::from_mode(0o604)).unwrap();
    let there = format!(":{}/there", text(directory.path()));
    assert_eq!(cp(&["-rp", text(&tree), &there]).code, 0);
    assert_eq!(cp(&["-rp", &there, &format!("{}/back", text(directory.path()))]).code, 0);
    for copy in ["there", "back"] {
        let copy = directory.path().join(copy);
        assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("/nowhere"));
        assert!(copy.join("a b\n'\"/empty").is_dir());
        let [copied, original] = [copy, tree.clone()].map(|tree| tree.join("a b\n'\"/-rf").metadata().unwrap());
        assert_eq!(copied.permissions().mode() & 0o7777, 0o604);
        let seconds =
            |time: &fs::Metadata| time.modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(seconds(&copied), seconds(&original));
    }
}

#[test]
fn streams_are_copied_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let remote = format!(":{}", text(&path));
    let mut cli = Cli::start_with(&["cp", "--local", "-", &remote], &[], |command| command.stdin(Stdio::piped()));
    std::io::Write::write_all(&mut cli.stdin.take().unwrap(), b"one\ntwo\n").unwrap();
    assert_eq!(cli.end().code, 0);
    assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
    let ended = cp(&["-q", &remote, "-"]);
    assert_eq!((ended.code, ended.stdout.join("+").as_str(), ended.stderr.len()), (0, "one+two", 0));
}

#[test]
fn what_is_wrong_is_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let here = text(directory.path());
    cp(&[":/no/such", here]).assert_one_line(1, &["/no/such: No such file or directory"]);
    cp(&[":/etc", here]).assert_one_line(1, &["/etc: is a directory; add -r to copy it"]);
    cp(&["/no/such", ":/tmp"]).assert_one_line(1, &["/no/such: No such file or directory"]);
    cp(&[":/etc/passwd", "/dev/full"]).assert_one_line(74, &["/dev/full", "No space left on device"]);
    cp(&["a", "b"]).assert_one_line(2, &["neither side is on a node"]);
    cp(&["ecs:prod/web", here]).assert_one_line(2, &["ecs:prod/web:PATH", "./ecs:prod/web"]);
    run(&["cp", ":a", "b"], &[]).assert_one_line(2, &["the target is missing before the colon"]);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}
