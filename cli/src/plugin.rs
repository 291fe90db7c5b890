//! The seam for running under the name of AWS's own client.

use std::path::Path;

/// Whether this process was started under the name that the AWS CLI and other tools start, rather than its own.
pub(crate) fn is_invoked_as_plugin() -> bool {
    std::env::args_os().next().is_some_and(|program| is_plugin_name(Path::new(&program)))
}

fn is_plugin_name(program: &Path) -> bool {
    program.file_stem().is_some_and(|name| name == "session-manager-plugin")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_what_counts() {
        assert!(is_plugin_name(Path::new("/usr/local/bin/session-manager-plugin")));
        assert!(is_plugin_name(Path::new("session-manager-plugin.exe")));
        assert!(!is_plugin_name(Path::new("/opt/session-manager-plugin/aws-ssm-forward")));
    }
}
