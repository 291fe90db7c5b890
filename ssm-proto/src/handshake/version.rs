//! Version strings, and the features that depend on them (HS-9).

use std::cmp::Ordering;

/// A dotted version. Each peer compares versions in its own way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    parts: Option<Vec<u64>>,
}

impl Version {
    /// Agents newer than this understand the TerminateSession flag in basic mode.
    pub const TERMINATE_FLAG: &'static str = "2.3.722.0";
    /// Agents newer than this multiplex.
    pub const AGENT_MUX: &'static str = "3.0.196.0";
    /// Agents from this version on can connect to other hosts; older ones ignore the host name.
    pub const AGENT_REMOTE_HOST: &'static str = "3.1.1188.0";
    /// With agents newer than this, neither end sends smux keep-alives.
    pub const AGENT_NO_KEEP_ALIVE: &'static str = "3.1.1511.0";
    /// The agent multiplexes with clients from this version on.
    pub const CLIENT_MUX: &'static str = "1.1.70";
    /// Clients newer than this are not expected to send smux keep-alives.
    pub const CLIENT_NO_KEEP_ALIVE: &'static str = "1.2.331.0";

    /// Parses a version. A string that is not a version compares as older than all versions.
    pub fn new(text: &str) -> Self {
        Self { parts: text.split('.').map(|part| part.parse().ok()).collect() }
    }

    /// Applies the client's rule for agents: `true` if this version is strictly newer, and `false` unless both have the same number
    /// of components.
    pub fn client_sees_newer_than(&self, constant: &str) -> bool {
        match (&self.parts, Self::new(constant).parts) {
            (Some(own), Some(other)) if own.len() == other.len() => *own > other,
            _ => false,
        }
    }

    /// Returns whether the version is older than `constant`; `false` if this version cannot be parsed.
    pub fn is_older_than(&self, constant: &str) -> bool {
        self.parts.is_some() && self.parts < Self::new(constant).parts
    }

    /// Compares the versions by the agent's rule for clients: component by component; if all are equal, the shorter version is
    /// smaller. [`Ordering::Less`] means that this version is older than `constant`.
    pub fn agent_compares(&self, constant: &str) -> Ordering {
        self.parts.cmp(&Self::new(constant).parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_peers_compare_differently() {
        assert!(Version::new("3.1.0.0").client_sees_newer_than(Version::AGENT_MUX));
        assert!(!Version::new("3.0.196.0").client_sees_newer_than(Version::AGENT_MUX));
        assert!(!Version::new("4.0").client_sees_newer_than(Version::AGENT_MUX));
        assert!(!Version::new("").client_sees_newer_than(Version::AGENT_MUX));
        assert!(Version::new("3.1.1080.0").is_older_than(Version::AGENT_REMOTE_HOST));
        assert!(!Version::new("3.1.1188.0").is_older_than(Version::AGENT_REMOTE_HOST));
        assert!(!Version::new("").is_older_than(Version::AGENT_REMOTE_HOST));
        assert_eq!(Version::new("1.1.70").agent_compares(Version::CLIENT_MUX), Ordering::Equal);
        assert_eq!(Version::new("1.2").agent_compares("1.2.0"), Ordering::Less);
        assert_eq!(Version::new("x").agent_compares("1.2.0"), Ordering::Less);
    }
}
