//! AWS's API for the tunnels of a process: those of the same account and region share one, so that a person is asked once.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use ssm_forward::AwsProvider;
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
    /// What is known of the sessions' ends; `None`: it may not be read. It is not asked for where nobody looks at it.
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

    /// When the service ends a tunnel's sessions. The account's preferences are read once, and may be unreadable.
    pub(super) async fn limits(&self, args: &AwsArgs, aws: &AwsProvider) -> Option<Limits> {
        let mut known = self.limits.as_ref()?.lock().await;
        let key = key(args);
        if let Some(limits) = known.get(&key) {
            return *limits;
        }
        let preferences = aws.preferences().await;
        let limits = preferences.inspect_err(|error| tracing::debug!(%error, "the preferences are unknown")).ok();
        let limits = limits.map(|preferences| Limits {
            idle_minutes: Some(preferences.idle_minutes_or_default()),
            max_minutes: preferences.max_minutes,
        });
        known.insert(key, limits);
        limits
    }

    /// After a failure that may be the credentials', the next tunnel finds them anew.
    pub(super) fn judge(&self, args: &AwsArgs, failure: &Failure) {
        if is_about_credentials(failure)
            && let Ok(mut found) = self.found.try_lock()
        {
            found.remove(&key(args));
        }
    }

    /// Ends what runs in this process.
    pub(super) async fn close(&mut self) {
        connect::stop(self.manager.take()).await;
    }
}

fn key(args: &AwsArgs) -> Key {
    (args.profile.clone(), args.region.clone(), args.endpoint_url.clone(), args.ca_bundle.clone())
}
