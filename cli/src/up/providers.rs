//! The AWS providers for the tunnels of a process. Tunnels with the same profile, region and endpoint share a provider, so that the
//! user is asked only once.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use ssm_forward::{AwsProvider, Preferences, ProviderError, ProviderErrorKind};
use tokio::sync::Mutex;

use super::status::Limits;
use super::worker::is_about_credentials;
use crate::args::AwsArgs;
use crate::connect;
use crate::exit_code::Failure;
use crate::local::LocalManager;
use crate::terminal::AtTerminal;

/// Profile, region, endpoint and CA bundle.
type Key = (Option<String>, Option<String>, Option<String>, Option<PathBuf>);

/// The providers and the limits of sessions, cached by their settings.
pub(super) struct Providers {
    /// The local Session Manager, with `--local`.
    manager: Option<LocalManager>,
    found: Mutex<HashMap<Key, Arc<AwsProvider>>>,
    /// The cached limits; an entry is `None` if the user is not allowed to read them. Without `with_limits`, there is no cache, and
    /// limits are not read.
    limits: Option<Mutex<HashMap<Key, Option<Limits>>>>,
}

impl Providers {
    /// Creates an empty cache. `with_limits` is for the live view, which shows when sessions end.
    pub(super) fn new(manager: Option<LocalManager>, with_limits: bool) -> Self {
        Self { manager, found: Mutex::default(), limits: with_limits.then(Mutex::default) }
    }

    /// Returns the provider for a tunnel.
    ///
    /// # Errors
    /// Returns an error if the configuration is invalid or there are no credentials.
    pub(super) async fn get(&self, args: &AwsArgs) -> Result<Arc<AwsProvider>, Failure> {
        // The lock is held during the look-up: other tunnels wait for its result instead of prompting the user again.
        let mut found = self.found.lock().await;
        let key = key(args);
        if let Some(provider) = found.get(&key) {
            return Ok(provider.clone());
        }
        let provider = connect::aws_or_local(args, self.manager.as_ref(), Arc::new(AtTerminal::new(false))).await?;
        found.insert(key, provider.clone());
        Ok(provider)
    }

    /// Returns the times after which the service ends a tunnel's sessions, if they are known. The account's preferences are read
    /// once. After a temporary failure, the next tunnel reads them again.
    pub(super) async fn limits(&self, args: &AwsArgs, aws: &AwsProvider) -> Option<Limits> {
        let mut known = self.limits.as_ref()?.lock().await;
        let key = key(args);
        if let Some(limits) = known.get(&key) {
            return *limits;
        }
        let read = aws.preferences().await;
        let is_cacheable = is_cacheable(&read);
        let read = read.inspect_err(|error| tracing::debug!(%error, "the account's preferences cannot be read"));
        let limits = read.ok().map(|preferences| Limits {
            idle_minutes: Some(preferences.idle_minutes_or_default()),
            max_minutes: preferences.max_minutes,
        });
        if is_cacheable {
            known.insert(key, limits);
        }
        limits
    }

    /// Removes the cached provider and limits after a failure that the credentials may have caused, so that the next tunnel looks
    /// up both again.
    pub(super) fn forget_after(&self, args: &AwsArgs, failure: &Failure) {
        if !is_about_credentials(failure) {
            return;
        }
        if let Ok(mut found) = self.found.try_lock() {
            found.remove(&key(args));
        }
        if let Some(mut limits) = self.limits.as_ref().and_then(|limits| limits.try_lock().ok()) {
            limits.remove(&key(args));
        }
    }

    /// Stops the local Session Manager, if there is one.
    pub(super) async fn close(&mut self) {
        connect::stop(self.manager.take()).await;
    }
}

/// Whether another call would probably have the same result.
fn is_cacheable(read: &Result<Preferences, ProviderError>) -> bool {
    read.as_ref().map_or_else(|error| error.kind == ProviderErrorKind::AccessDenied, |_| true)
}

fn key(args: &AwsArgs) -> Key {
    (args.profile.clone(), args.region.clone(), args.endpoint_url.clone(), args.ca_bundle.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_temporary_failures_are_forgotten() {
        let failed = |kind| Err(ProviderError { kind, message: String::new() });
        assert!(is_cacheable(&Ok(Preferences::default())) && is_cacheable(&failed(ProviderErrorKind::AccessDenied)));
        let is_temporary = |kind| !is_cacheable(&failed(kind));
        assert!(is_temporary(ProviderErrorKind::Throttled) && is_temporary(ProviderErrorKind::Unreachable));
    }
}
