//! Namespaces in which `/etc/hosts` maps the real host names to the tunnels. Only the command sees them. They work without root.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};
use tempfile::NamedTempFile;

use crate::exit_code::{ExitCode, Failure};
use crate::hosts::{Name, files_first, with_names};

const HOSTS: &str = "/etc/hosts";
const SWITCH: &str = "/etc/nsswitch.conf";
/// The sockets of nscd. This cache of the C library would answer with the addresses outside of the namespace.
const CACHES: [&str; 2] = ["/run/nscd/socket", "/var/run/nscd/socket"];

/// Moves this process into namespaces in which `names` resolve to the tunnels. The process must have a single thread.
///
/// # Errors
/// If the system does not allow it, returns an error that says what would allow it, and what works without it.
pub(super) fn enter(names: &[Name]) -> Result<(), Failure> {
    create_namespaces()?;
    // Mounts of the system stay visible in this namespace, but mounts of this namespace are not visible outside.
    let recursive = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, recursive, None::<&str>).map_err(|error| refused("mount", error))?;
    let hosts = fs::read_to_string(HOSTS).map_err(|error| unreadable(HOSTS, &error))?;
    replace(HOSTS, &with_names(&hosts, names))?;
    if let Some(switch) = fs::read_to_string(SWITCH).ok().and_then(|switch| files_first(&switch)) {
        replace(SWITCH, &switch)?;
    }
    for cache in CACHES.into_iter().filter(|cache| Path::new(cache).exists()) {
        bind(Path::new("/dev/null"), cache)?;
    }
    Ok(())
}

/// Creates a mount namespace. Root needs nothing else. Other users also get a user namespace, in which they are allowed to mount.
/// The ids of the user and the group stay the same, so that files have the same owners.
fn create_namespaces() -> Result<(), Failure> {
    if unshare(CloneFlags::CLONE_NEWNS).is_ok() {
        return Ok(());
    }
    let (user, group) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(|error| refused("unshare", error))?;
    // The kernel requires this before gid_map: otherwise a process could drop a group that denies it access to files.
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{user} {user} 1")),
        ("gid_map", format!("{group} {group} 1")),
    ] {
        fs::write(format!("/proc/self/{file}"), text).map_err(|error| refused(file, error))?;
    }
    Ok(())
}

/// Mounts a file with the content `text` over `path`.
fn replace(path: &str, text: &str) -> Result<(), Failure> {
    let mut file = tempfile::Builder::new();
    file.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    let written = file.tempfile().and_then(|mut file: NamedTempFile| {
        file.write_all(text.as_bytes())?;
        Ok(file)
    });
    let file = written.map_err(|error| unreadable(&std::env::temp_dir().display().to_string(), &error))?;
    // The temporary file may be deleted afterwards, because the mount keeps its content.
    bind(file.path(), path)
}

fn bind(source: &Path, target: &str) -> Result<(), Failure> {
    let mounted = mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>);
    mounted.map_err(|error| refused("mount", error))
}

fn unreadable(path: &str, error: &std::io::Error) -> Failure {
    failure(format!("--real-names: {path}: {error}"))
}

fn refused(call: &str, error: impl std::fmt::Display) -> Failure {
    let setting = |name: &str| fs::read_to_string(format!("/proc/sys/{name}")).map(|text| text.trim().to_owned());
    failure(format!(
        "--real-names needs a namespace of its own, which this system does not allow ({call}: {error}): {}; or use {{host}} \
         and {{port}} in the command without --real-names",
        remedy(|name| setting(name).ok(), is_filtered())
    ))
}

fn failure(text: String) -> Failure {
    Failure::new(ExitCode::Config, "namespace", text)
}

/// Whether seccomp filters system calls, as in many containers.
fn is_filtered() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| status.lines().any(|line| line == "Seccomp:\t2"))
}

/// Returns a text that says what would allow the namespaces.
fn remedy(setting: impl Fn(&str) -> Option<String>, is_filtered: bool) -> String {
    let is = |name: &str, value: &str| setting(name).is_some_and(|found| found == value);
    if is("kernel/unprivileged_userns_clone", "0") {
        return "allow it with: sudo sysctl kernel.unprivileged_userns_clone=1".into();
    }
    if is("user/max_user_namespaces", "0") {
        return "allow it with: sudo sysctl user.max_user_namespaces=10000".into();
    }
    if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        return "allow it with: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0, or with an AppArmor profile for \
                this program that has the rule `userns,`"
            .into();
    }
    if is_filtered {
        return "a container allows it with: docker run --cap-add SYS_ADMIN --security-opt apparmor=unconfined, or with a \
                seccomp profile that allows unshare and mount"
            .into();
    }
    "run it as root, or outside of a chroot or container".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_allow_it_is_told() {
        let with = |name: &'static str, value: &'static str, filtered| {
            remedy(move |asked| (asked == name).then(|| value.to_owned()), filtered)
        };
        assert!(with("kernel/unprivileged_userns_clone", "0", true).contains("kernel.unprivileged_userns_clone=1"));
        assert!(with("kernel/apparmor_restrict_unprivileged_userns", "1", false).contains("userns,"));
        assert!(with("user/max_user_namespaces", "0", false).contains("user.max_user_namespaces"));
        assert!(with("user/max_user_namespaces", "9", true).contains("SYS_ADMIN"));
        assert!(with("user/max_user_namespaces", "9", false).contains("root"));
    }
}
