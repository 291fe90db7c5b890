//! Starts a session on a node that may still be booting.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::session::RetryPolicy;
use crate::{ForwardError, ProviderError, ProviderErrorKind};

/// Delays between two attempts. They are long because the API throttles StartSession.
const PAUSES: RetryPolicy = RetryPolicy { initial: Duration::from_secs(1), max: Duration::from_secs(5) };

/// Calls `start`, and repeats the call for up to `patience` while the target is not connected. A node that boots may connect and
/// disconnect again, so only a started session ends the wait. `waiting` is called once, with the API's answer.
///
/// # Errors
/// Returns the error of the last attempt.
pub async fn await_target<T, S>(
    target: &str,
    patience: Duration,
    waiting: impl FnOnce(&str),
    start: impl Fn() -> S,
) -> Result<T, ForwardError>
where
    S: Future<Output = Result<T, ForwardError>>,
{
    let deadline = Instant::now() + patience;
    let mut waiting = Some(waiting);
    for attempt in 2.. {
        let error = match start().await {
            Err(error) if !patience.is_zero() && is_temporary(&error, waiting.is_none()) => error,
            done => return done,
        };
        let pause = PAUSES.delay(attempt);
        if Instant::now() + pause >= deadline {
            return Err(waited(error, target, patience));
        }
        if let Some(tell) = waiting.take() {
            tell(&error.to_string());
        }
        sleep(pause).await;
    }
    Err(ForwardError::TimedOut { target: target.to_owned(), limit: patience })
}

/// Whether to try again. Once the wait has begun, other temporary errors do not end it either, for example throttling by the API,
/// or an agent that has disconnected again.
fn is_temporary(error: &ForwardError, waits: bool) -> bool {
    match error {
        ForwardError::Provider(error) => {
            error.kind == ProviderErrorKind::NotConnected || (waits && error.is_retryable())
        }
        ForwardError::TimedOut { .. } => waits,
        _ => false,
    }
}

fn waited(error: ForwardError, target: &str, patience: Duration) -> ForwardError {
    match error {
        ForwardError::Provider(ProviderError { kind, message }) => {
            let message = format!("{message}; waited {} s for {target} to connect", patience.as_secs_f32());
            ForwardError::Provider(ProviderError { kind, message })
        }
        ForwardError::TimedOut { target, .. } => ForwardError::TimedOut { target, limit: patience },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::ProviderErrorKind::{AccessDenied, NotConnected, Throttled};
    use super::*;

    /// Runs `await_target` with attempts that are refused in this order and then succeed. Returns the result, how often `waiting`
    /// was called, and the elapsed seconds.
    async fn started(kinds: &[ProviderErrorKind], patience: u64) -> (Result<(), ProviderErrorKind>, usize, u64) {
        let (left, mut told, before) = (Mutex::new(kinds.iter().rev().collect::<Vec<_>>()), 0, Instant::now());
        let start = || {
            let next = left.lock().unwrap().pop().copied();
            let refused = |kind| ForwardError::Provider(ProviderError { kind, message: "no".into() });
            std::future::ready(next.map_or(Ok(()), |kind| Err(refused(kind))))
        };
        let outcome = await_target("i-1", Duration::from_secs(patience), |_| told += 1, start).await;
        let kind = |error| match error {
            ForwardError::Provider(error) => {
                assert_eq!(error.message.contains("waited 10 s for i-1"), error.kind == NotConnected && patience == 10);
                error.kind
            }
            other => panic!("{other}"),
        };
        (outcome.map_err(kind), told, before.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_comes_and_goes_is_waited_for_and_that_is_told_once() {
        let (outcome, told, _) = started(&[NotConnected, NotConnected, Throttled, NotConnected], 60).await;
        assert_eq!((outcome, told), (Ok(()), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_is_bounded() {
        let (outcome, told, waited) = started(&[NotConnected; 99], 10).await;
        assert_eq!((outcome, told), (Err(NotConnected), 1));
        assert!((4..=10).contains(&waited), "{waited}");
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_can_pass_is_waited_for() {
        for (kinds, patience) in [(&[NotConnected], 0), (&[AccessDenied], 60), (&[Throttled], 60)] {
            assert_eq!(started(kinds, patience).await, (Err(kinds[0]), 0, 0));
        }
        assert_eq!(started(&[NotConnected, AccessDenied], 60).await.0, Err(AccessDenied));
    }
}
