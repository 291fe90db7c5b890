//! A cache of look-ups on disk. It contains the nodes that were found for a name, so that a script that runs the command often
//! calls AWS only once, and the names that exist, for completion.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use tokio::task::spawn_blocking;

use super::{AwsProvider, Node};

/// The folder in which look-ups are stored. Only the user can read its files. A file that cannot be read or written, or that
/// another user may have written, is treated as if it did not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookupCache {
    folder: PathBuf,
    /// Results that are older than this time are ignored. Unit: milliseconds since 1970.
    oldest: u64,
}

/// How long the nodes of a name are used without calling AWS.
const LIFETIME: Duration = Duration::from_secs(60);
/// How long a name is offered for completion.
const MEMORY: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Maximum length of a file, in bytes. A larger file was not written by this program.
const MAX_FILE: u64 = 16 << 20;

impl LookupCache {
    /// Uses `folder`, which is created when a result is stored.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), oldest: 0 }
    }

    /// Ignores the nodes that were found until now: AWS is called again, and the answers are stored.
    #[must_use]
    pub fn refresh(mut self) -> Self {
        self.oldest = milliseconds(SystemTime::now());
        self
    }

    /// Returns the names of nodes, containers and services that were found within the last week, each with the places (region and
    /// profile) in which it was found.
    pub fn names(&self) -> BTreeMap<String, BTreeSet<String>> {
        let now = milliseconds(SystemTime::now());
        let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for file in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let Content { place, names: known, .. } = read(&file.path());
            for (name, _) in known.into_iter().filter(|(_, at)| is_younger(*at, now, MEMORY)) {
                names.entry(name).or_default().insert(place.clone());
            }
        }
        names
    }

    fn nodes(&self, key: &str, what: &str, now: u64) -> Option<Vec<Node>> {
        let found = read(&self.file(key)).nodes.remove(what)?;
        let counts = found.at >= self.oldest && is_younger(found.at, now, LIFETIME);
        counts.then_some(found.nodes)
    }

    /// Replaces the whole file, so that no reader sees an incomplete one. If two processes write at the same time, the result of
    /// one of them is lost.
    fn store(&self, key: &str, place: &str, found: Found, now: u64) -> io::Result<()> {
        let file = self.file(key);
        let mut content = read(&file);
        place.clone_into(&mut content.place);
        content.nodes.retain(|_, looked_up| is_younger(looked_up.at, now, LIFETIME));
        content.names.retain(|_, at| is_younger(*at, now, MEMORY));
        content.names.extend(found.names.into_iter().map(|name| (name, now)));
        if let Some((what, nodes)) = found.nodes {
            content.nodes.insert(what, LookedUp { at: now, nodes });
        }
        let mut folder = std::fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut folder, 0o700);
        folder.recursive(true).create(&self.folder)?;
        // `tempfile` creates it with mode 0600.
        let mut new = NamedTempFile::new_in(&self.folder)?;
        new.write_all(&serde_json::to_vec(&content)?)?;
        new.persist(file)?;
        Ok(())
    }

    /// Returns the path of a key's file. The name is a hash, so it reveals nothing about the account.
    fn file(&self, key: &str) -> PathBuf {
        let digest = Sha256::digest(key.as_bytes());
        let name: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(format!("{name}.json"))
    }
}

/// The results of one account, region and endpoint.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Content {
    /// The region and profile, for display.
    place: String,
    /// The nodes, by the text that was looked up.
    nodes: BTreeMap<String, LookedUp>,
    /// The names, each with the time at which it was last found.
    names: BTreeMap<String, u64>,
}

#[derive(Debug, Deserialize, Serialize)]
struct LookedUp {
    at: u64,
    nodes: Vec<Node>,
}

/// Results to store.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The text that was looked up, and the nodes.
    pub(super) nodes: Option<(String, Vec<Node>)>,
    /// Names for completion.
    pub(super) names: Vec<String>,
}

fn read(path: &Path) -> Content {
    let read = || -> io::Result<Content> {
        let file = std::fs::File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.len() > MAX_FILE || !is_private(&metadata) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(serde_json::from_reader(io::BufReader::new(file))?)
    };
    read().unwrap_or_default()
}

/// Whether only this user can have written the file.
#[cfg(unix)]
fn is_private(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0
}

#[cfg(not(unix))]
fn is_private(_: &std::fs::Metadata) -> bool {
    true
}

/// Whether `at` is less than `age` ago. A time in the future does not count: the clock was wrong then, or is wrong now.
fn is_younger(at: u64, now: u64, age: Duration) -> bool {
    now.checked_sub(at).is_some_and(|since| u128::from(since) < age.as_millis())
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl AwsProvider {
    /// Stores look-ups in `cache`, and uses the nodes that were found within the last minute for first sessions. For a session that
    /// replaces another one, and for a session that was refused, the node is looked up again. The endpoints of services are always
    /// looked up. Default: everything is always looked up, and nothing is stored.
    #[must_use]
    pub fn with_cache(mut self, cache: LookupCache) -> Self {
        self.cache = Some(cache);
        self
    }

    /// Returns the nodes that were found for `what` within the last minute. If this is `None`, the caller has to call AWS.
    pub(crate) async fn remembered(&self, what: String) -> Option<Vec<Node>> {
        let cache = self.cache.clone()?;
        let key = self.cache_key().await?;
        let look = move || cache.nodes(&key, &what, milliseconds(SystemTime::now()));
        let nodes = spawn_blocking(look).await.ok()??;
        tracing::debug!(?nodes, "found within the last minute");
        Some(nodes)
    }

    /// Stores the results, if there is a cache.
    pub(super) async fn remember(&self, found: Found) {
        let Some(cache) = self.cache.clone() else { return };
        let Some(key) = self.cache_key().await else { return };
        let (place, folder) = (self.place(), cache.folder.clone());
        let store = move || cache.store(&key, &place, found, milliseconds(SystemTime::now()));
        if let Ok(Err(error)) = spawn_blocking(store).await {
            tracing::debug!(%error, folder = %folder.display(), "the look-up could not be stored");
        }
    }

    /// Returns the key of the cache file: the account if it is known, otherwise the access key; the region; and the endpoint.
    async fn cache_key(&self) -> Option<String> {
        let credentials = self.credentials.current().await.ok()?;
        let account = credentials.account_id().map(|id| id.as_str());
        let identity = account.unwrap_or_else(|| credentials.access_key_id());
        Some([identity, &self.settings.region, &self.endpoint].join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_767_225_600_000;

    fn cache() -> (tempfile::TempDir, LookupCache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = LookupCache::new(folder.path().join("new"));
        (folder, cache)
    }

    fn node(id: &str) -> Node {
        Node {
            id: id.to_owned(),
            name: Some("web".to_owned()),
            computer_name: None,
            address: None,
            platform: None,
            agent_version: None,
            online: true,
            last_ping: Some(SystemTime::UNIX_EPOCH),
        }
    }

    fn found(what: &str, id: &str) -> Found {
        Found { nodes: Some((what.to_owned(), vec![node(id)])), names: vec![id.to_owned()] }
    }

    #[test]
    fn nodes_are_known_for_a_minute_under_their_name_and_key_alone() {
        let (_folder, cache) = cache();
        cache.store("me", "eu-west-1", found("web", "i-1"), NOW).unwrap();
        assert_eq!(cache.nodes("me", "web", NOW + 59_999), Some(vec![node("i-1")]));
        assert_eq!(cache.nodes("me", "web", NOW + 60_000), None);
        assert_eq!(cache.nodes("me", "db", NOW), None);
        assert_eq!(cache.nodes("you", "web", NOW), None);
        // The clock was set back.
        assert_eq!(cache.nodes("me", "web", NOW - 1), None);
    }

    #[test]
    fn after_a_refresh_only_new_nodes_count() {
        let (_folder, cache) = cache();
        cache.store("me", "eu-west-1", found("web", "i-1"), NOW).unwrap();
        let cache = LookupCache { oldest: NOW + 1, ..cache };
        assert_eq!(cache.nodes("me", "web", NOW + 1), None);
        cache.store("me", "eu-west-1", found("web", "i-2"), NOW + 1).unwrap();
        assert_eq!(cache.nodes("me", "web", NOW + 1), Some(vec![node("i-2")]));
    }

    #[test]
    fn names_come_from_all_places_for_a_week() {
        let (_folder, cache) = cache();
        let now = milliseconds(SystemTime::now());
        let week = u64::try_from(MEMORY.as_millis()).unwrap();
        cache.store("me", "eu-west-1", found("a", "i-0"), now - week).unwrap();
        cache.store("me", "eu-west-1", found("a", "i-1"), now).unwrap();
        cache.store("you", "us-east-1", found("a", "i-1"), now).unwrap();
        cache.store("you", "us-east-1", found("b", "i-2"), now).unwrap();
        let names: Vec<_> = cache.names().into_iter().map(|(name, places)| (name, places.len())).collect();
        assert_eq!(names, [("i-1".to_owned(), 2), ("i-2".to_owned(), 1)]);
    }

    #[test]
    fn a_damaged_file_is_replaced() {
        let (_folder, cache) = cache();
        cache.store("me", "eu-west-1", found("web", "i-1"), NOW).unwrap();
        std::fs::write(cache.file("me"), "{\"nodes").unwrap();
        assert_eq!(cache.nodes("me", "web", NOW), None);
        cache.store("me", "eu-west-1", found("web", "i-2"), NOW).unwrap();
        assert_eq!(cache.nodes("me", "web", NOW), Some(vec![node("i-2")]));
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_can_read_it_and_what_others_can_write_does_not_count() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_folder, cache) = cache();
        cache.store("me", "eu-west-1", found("web", "i-1"), NOW).unwrap();
        let file = cache.file("me");
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&cache.folder), mode(&file)), (0o700, 0o600));
        assert_eq!(std::fs::read_dir(&cache.folder).unwrap().count(), 1);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o622)).unwrap();
        assert_eq!(cache.nodes("me", "web", NOW), None);
    }
}
