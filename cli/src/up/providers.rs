//! AWS's API for the tunnels of a process: those of the same account and region share one, so that a person is asked once.

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

/// Profile, region, endpoint and certificate authorities.
type Key = (Option<String>, Option<String>, Option<String>, Option<PathBuf>);

/// The APIs by what they were asked for.
pub(super) struct Providers {
    /// With `--local`.
    manager: Option<LocalManager>,
    found: Mutex<HashMap<Key, Arc<AwsProvider>>>,
    /// What is known of the sessions' ends; `None`: it may not be read. Without `with_limits`, it is not asked for.
    limits: Option<Mutex<HashMap<Key, Option<Limits>>>>,
}

impl Providers {
    /// `with_limits`: somebody looks at when sessions end.
    pub(super) fn new(manager: Option<LocalManager>, with_limits: bool) -> Self {
        Self { manager, found: Mutex::default(), limits: with_limits.then(Mutex::default) }
    }

    /// The API for a tunnel.
    ///
    /// # Errors
    /// The configuration is wrong, or there are no credentials.
    pub(super) async fn get(&self, args: &AwsArgs) -> Result<Arc<AwsProvider>, Failure> {
        // While one looks, the others wait: they would ask the same.
        let mut found = self.found.lock().await;
        let key = key(args);
        if let Some(provider) = found.get(&key) {
            return Ok(provider.clone());
        }
        let provider = connect::aws_or_local(args, self.manager.as_ref(), Arc::new(AtTerminal::new(false))).await?;
        found.insert(key, provider.clone());
        Ok(provider)
    }

    /// When the service ends a tunnel's sessions, if that is known. The account's preferences are read once. After a
    /// temporary failure, the next tunnel reads them again.
    pub(super) async fn limits(&self, args: &AwsArgs, aws: &AwsProvider) -> Option<Limits> {
        let mut known = self.limits.as_ref()?.lock().await;
        let key = key(args);
        if let Some(limits) = known.get(&key) {
            return *limits;
        }
        let read = aws.preferences().await;
        let lasts = lasts(&read);
        let read = read.inspect_err(|error| tracing::debug!(%error, "the preferences are unknown"));
        let limits = read.ok().map(|preferences| Limits {
            idle_minutes: Some(preferences.idle_minutes_or_default()),
            max_minutes: preferences.max_minutes,
        });
        if lasts {
            known.insert(key, limits);
        }
        limits
    }

    /// After a failure that may be due to the credentials, the next tunnel looks them up again, and reads the limits again.
    pub(super) fn judge(&self, args: &AwsArgs, failure: &Failure) {
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

    /// Ends what runs in this process.
    pub(super) async fn close(&mut self) {
        connect::stop(self.manager.take()).await;
    }
}

/// Whether another call would probably have the same outcome.
fn lasts(read: &Result<Preferences, ProviderError>) -> bool {
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
        assert!(lasts(&Ok(Preferences::default())) && lasts(&failed(ProviderErrorKind::AccessDenied)));
        assert!(!lasts(&failed(ProviderErrorKind::Throttled)) && !lasts(&failed(ProviderErrorKind::Unreachable)));
    }
}
