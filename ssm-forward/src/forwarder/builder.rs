//! The builder of a forwarder.

use std::io;
use std::sync::Arc;

use super::{ForwardConfig, Forwarder, OnEvent};
use crate::dialer::Dialer;
use crate::entrance::Entrance;
use crate::half_closed;
use crate::listener::{ListenAddr, Listener, OpenListener};
use crate::relay::RelayConfig;
use crate::session::Session;
use crate::stats::ForwardStats;
use crate::{ForwardError, ForwardEvent, LocalAddr, SessionProvider, StartRequest};

/// Builds a [`Forwarder`].
#[must_use]
pub struct ForwarderBuilder {
    provider: Arc<dyn SessionProvider>,
    request: StartRequest,
    session: Option<Arc<Session>>,
    config: ForwardConfig,
    on_event: OnEvent,
}

impl ForwarderBuilder {
    pub(super) fn new(provider: Arc<dyn SessionProvider>, request: StartRequest) -> Self {
        Self { provider, request, session: None, config: ForwardConfig::default(), on_event: Arc::new(|_| {}) }
    }

    /// Sets the configuration.
    pub fn config(mut self, config: ForwardConfig) -> Self {
        self.config = config;
        self
    }

    /// Uses an existing session instead of starting one. When it is lost, a new session is started from the request, unless the
    /// configuration forbids this.
    pub fn session(mut self, session: Arc<Session>) -> Self {
        self.session = Some(session);
        self
    }

    /// Calls `f` for each event. `f` must not block.
    pub fn on_event(mut self, f: impl Fn(ForwardEvent) + Send + Sync + 'static) -> Self {
        self.on_event = Arc::new(f);
        self
    }

    /// Binds the local socket. Does not start a session yet, so that no session is left behind if the port is in use.
    ///
    /// # Errors
    /// [`ForwardError::Listen`] if the address cannot be used.
    pub async fn bind(self, listen: ListenAddr) -> Result<Forwarder, ForwardError> {
        let failed = |source: io::Error| ForwardError::Listen { address: listen.to_string(), source: source.into() };
        half_closed::prepare();
        self.on(Listener::bind(&listen).await.map_err(failed)?)
    }

    /// Uses a socket that already listens. Connections that wait in its backlog are served too.
    ///
    /// # Errors
    /// [`ForwardError::Listen`] if the socket cannot be used.
    pub fn listener(self, open: OpenListener) -> Result<Forwarder, ForwardError> {
        half_closed::prepare();
        let address = "a socket that was passed".to_owned();
        let failed = |source: io::Error| ForwardError::Listen { address, source: source.into() };
        self.on(Listener::of(open).map_err(failed)?)
    }

    fn on(self, listener: Listener) -> Result<Forwarder, ForwardError> {
        let failed = |source: io::Error| ForwardError::Listen { address: "a socket".into(), source: source.into() };
        let local_addr = listener.local_addr().map_err(failed)?;
        Ok(self.build(listener, local_addr))
    }

    fn build(self, listener: Listener, local_addr: LocalAddr) -> Forwarder {
        let Self { provider, request, session, config, on_event } = self;
        let stats = ForwardStats::default();
        Forwarder { provider, request, session, config, on_event, listener, local_addr, stats, dials: None }
    }

    /// Returns a forwarder without a socket. Connections are passed to the returned [`Entrance`], for example by a proxy that has
    /// exchanged its protocol's greeting with the program before.
    pub fn hand_in(self) -> (Forwarder, Entrance) {
        half_closed::prepare();
        let (entrance, handed_in) = Entrance::new();
        (self.build(Listener::HandedIn(handed_in), LocalAddr::HandedIn), entrance)
    }

    /// Returns a forwarder whose connections choose their destinations. Only a relay can do that. The relay is started with the
    /// forwarder, which ends with [`ForwardError::NoRelay`] if the target has none. The request's document and parameters,
    /// [`ForwardConfig::relay`], [`ForwardConfig::lazy`] and [`ForwardConfig::wait_ready`] are ignored.
    pub fn dial(mut self, relay: RelayConfig) -> (Forwarder, Dialer) {
        self.config = ForwardConfig { relay: Some(relay), lazy: None, ..self.config };
        let (forwarder, entrance) = self.hand_in();
        let (dialer, dials) = Dialer::new(entrance);
        (Forwarder { dials: Some(dials), ..forwarder }, dialer)
    }
}
