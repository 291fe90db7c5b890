//! A timer for the agent's sending rate, which needs a resolution below a millisecond. tokio's timers have a resolution of 1 ms:
//! messages would be sent in pairs, and earlier when a client's acknowledgements happen to wake the agent.

#[cfg(not(target_os = "linux"))]
pub(super) use elsewhere::Alarm;
#[cfg(target_os = "linux")]
pub(super) use linux::Alarm;

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::OwnedFd;
    use std::task::{Context, Poll, ready};
    use std::time::Duration;

    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
    };
    use tokio::io::unix::AsyncFd;
    use tokio::time::Instant;

    /// A Linux timerfd, which fires within about 50 µs.
    #[derive(Debug)]
    pub(in super::super) struct Alarm {
        timer: AsyncFd<OwnedFd>,
        set_to: Option<Instant>,
    }

    impl Alarm {
        pub(in super::super) fn new() -> io::Result<Self> {
            let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
            #[expect(
                deprecated,
                reason = "sound for a descriptor that is owned and never replaced; the replacement needs unsafe code"
            )]
            let timer = AsyncFd::new(timer)?;
            Ok(Self { timer, set_to: None })
        }

        /// Returns ready when the time `at` has come.
        pub(in super::super) fn poll(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<io::Result<()>> {
            if self.set_to != Some(at) {
                self.set(at.saturating_duration_since(Instant::now()))?;
                self.set_to = Some(at);
            }
            loop {
                let mut guard = ready!(self.timer.poll_read_ready(cx))?;
                // The descriptor may be readable since before the timer was set again.
                if let Ok(fired) = guard.try_io(|timer| Ok(rustix::io::read(timer, &mut [0; 8])?)) {
                    self.set_to = None;
                    return Poll::Ready(fired.map(drop));
                }
            }
        }

        fn set(&self, delay: Duration) -> io::Result<()> {
            let never = Timespec { tv_sec: 0, tv_nsec: 0 };
            // A delay of zero would stop the timer.
            let delay = delay.max(Duration::from_nanos(1));
            let value = Timespec { tv_sec: delay.as_secs().cast_signed(), tv_nsec: delay.subsec_nanos().into() };
            timerfd_settime(
                &self.timer,
                TimerfdTimerFlags::empty(),
                &Itimerspec { it_interval: never, it_value: value },
            )?;
            Ok(())
        }
    }
}

/// On other systems the agent uses tokio's timer.
#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use std::io;
    use std::task::{Context, Poll};

    use tokio::time::Instant;

    #[derive(Debug)]
    pub(in super::super) enum Alarm {}

    impl Alarm {
        pub(in super::super) fn new() -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(in super::super) fn poll(&mut self, _cx: &mut Context<'_>, _at: Instant) -> Poll<io::Result<()>> {
            match *self {}
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;
    use std::time::Duration;

    use tokio::time::Instant;

    use super::Alarm;

    #[tokio::test]
    async fn it_is_never_early_also_when_set_again() {
        let mut alarm = Alarm::new().unwrap();
        let began = Instant::now();
        let far = began + Duration::from_secs(3600);
        let is_set = poll_fn(|cx| Poll::Ready(alarm.poll(cx, far).is_pending())).await;
        assert!(is_set);
        for at in [began + Duration::from_micros(1500), began + Duration::from_micros(2600), began] {
            poll_fn(|cx| alarm.poll(cx, at)).await.unwrap();
            assert!(Instant::now() >= at);
        }
    }
}
