//! The managed nodes.

use std::collections::BTreeMap;

/// A managed node of the local Session Manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalTarget {
    id: String,
    agent_version: String,
    tags: BTreeMap<String, String>,
    connected: bool,
}

/// The id of the node of a local Session Manager for which no node is configured.
const DEFAULT_ID: &str = "i-0123456789abcdef0";
const DEFAULT_AGENT_VERSION: &str = "3.3.987.0";

impl LocalTarget {
    /// Creates a connected node with this id and the tag `Name=local`.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            agent_version: DEFAULT_AGENT_VERSION.into(),
            tags: BTreeMap::from([("Name".into(), "local".into())]),
            connected: true,
        }
    }

    /// Sets the version that the node's agent reports. The version decides between multiplexing and one connection at a time.
    /// Default: `3.3.987.0`.
    #[must_use]
    pub fn agent_version(mut self, version: impl Into<String>) -> Self {
        self.agent_version = version.into();
        self
    }

    /// Sets a tag.
    #[must_use]
    pub fn tag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.insert(key.into(), value.into());
        self
    }

    /// Marks the node's agent as not connected: the node is listed, but no session can be started.
    #[must_use]
    pub fn disconnected(mut self) -> Self {
        self.connected = false;
        self
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn version(&self) -> &str {
        &self.agent_version
    }

    pub(crate) fn tags(&self) -> &BTreeMap<String, String> {
        &self.tags
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connected
    }
}

impl Default for LocalTarget {
    fn default() -> Self {
        Self::new(DEFAULT_ID)
    }
}
