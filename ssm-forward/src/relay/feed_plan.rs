//! Decides when downloads use command sessions (feeds), and how many: one is tried, and each further one only while the previous
//! one helped.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Maximum number of simultaneous feeds. Each can carry thousands of messages per second, which is a load for the service.
pub(super) const MAX_FEEDS: usize = 3;
/// How long a download must keep all pipes busy before it gets a feed. Rates are averages over this time.
const BUSY_FOR: Duration = Duration::from_secs(1);
/// Duration of a trial, in which a feed has to show that it helps. A feed begins slowly.
const TRIAL: Duration = Duration::from_secs(5);
/// A feed helps if downloads are faster by this factor.
const GAIN: f64 = 1.25;
/// Minimum rate that counts as a download, in bytes per second and pipe: a fifth of the rate at which the agent sends.
const LOAD: f64 = 128.0 * 1024.0;
/// Feeds end after this time without a download.
const IDLE: Duration = Duration::from_secs(10);
/// Delay of the next feed after one was refused, was cut, or did not help. The delay is four times as long after each further
/// failure.
const PAUSE: Duration = Duration::from_secs(5);
const PAUSE_FACTOR: u32 = 4;
/// After this number of failures, no further feed is started. A failure is a feed that was refused or cut, or that did not help a
/// download as its only feed.
const MAX_FAILURES: u32 = 3;
/// A feed that lasted for this time was successful: earlier failures do not count any longer.
const STABLE: Duration = Duration::from_secs(60);

/// A measurement of the client's downloads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Number of bytes that were received so far, over pipes and feeds.
    pub(super) bytes: u64,
    /// Current number of pipes.
    pub(super) pipes: usize,
    /// Whether no pipe could carry more.
    pub(super) is_busy: bool,
}

/// What the plan requests; see [`FeedPlan::update`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum PlanAction {
    Nothing,
    /// Start one more feed. The field is the current rate of downloads, in bytes per second.
    Start(f64),
    /// Keep the feeds. The fields are the rates without and with the latest feed, in bytes per second.
    Keep(f64, f64),
    /// End the latest feed, because it did not help. The rates are as in `Keep`. If it was the only feed, this counts as a failure.
    EndOne(f64, f64, Option<AfterFailure>),
    /// End all feeds, because there is no download.
    EndAll,
}

/// What happens after the failure of a feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterFailure {
    /// Another feed can be started after this time.
    After(Duration),
    /// No further feed is started.
    Never,
}

/// Decides about feeds; see the module.
#[derive(Debug, Default)]
pub(super) struct FeedPlan {
    /// Recent samples.
    samples: VecDeque<(Instant, u64)>,
    busy_since: Option<Instant>,
    /// Time of the last download.
    loaded: Option<Instant>,
    /// Number of feeds that are being started or carry data.
    feeds: usize,
    /// Whether all feeds were requested to end.
    is_resting: bool,
    trial: Option<Trial>,
    /// Whether the latest feed did not help.
    is_enough: bool,
    not_before: Option<Instant>,
    failures: u32,
    is_over: bool,
}

/// The trial of the latest feed, which has to show that it helps.
#[derive(Clone, Copy, Debug)]
struct Trial {
    /// Rate and number of pipes before it was started.
    before: f64,
    pipes: usize,
    /// Since when the feed carries data during a download.
    since: Option<Instant>,
}

impl FeedPlan {
    /// Processes a measurement. It should be called about twice a second.
    pub(super) fn update(&mut self, now: Instant, sample: Sample) -> PlanAction {
        let rate = self.rate(now, sample.bytes);
        let is_loaded = sample.pipes > 0 && rate >= LOAD * sample.pipes as f64;
        if is_loaded {
            (self.loaded, self.is_resting) = (Some(now), false);
        } else if self.loaded.is_none_or(|at| at + IDLE <= now) {
            return self.rest();
        }
        match self.busy_since {
            _ if !(is_loaded && sample.is_busy) => self.busy_since = None,
            None => self.busy_since = Some(now),
            Some(_) => {}
        }
        match self.trial {
            Some(trial) => self.judge(now, trial, sample.pipes, rate, is_loaded),
            None if self.wants_more(now) => {
                self.feeds += 1;
                self.trial = Some(Trial { before: rate, pipes: sample.pipes, since: None });
                PlanAction::Start(rate)
            }
            None => PlanAction::Nothing,
        }
    }

    /// Returns the average rate of the last second, in bytes per second.
    fn rate(&mut self, now: Instant, bytes: u64) -> f64 {
        self.samples.push_back((now, bytes));
        while self.samples.get(1).is_some_and(|(at, _)| *at + BUSY_FOR <= now) {
            self.samples.pop_front();
        }
        let Some((since, before)) = self.samples.front() else { return 0.0 };
        let seconds = now.saturating_duration_since(*since).as_secs_f64();
        if seconds > 0.0 { bytes.saturating_sub(*before) as f64 / seconds } else { 0.0 }
    }

    fn rest(&mut self) -> PlanAction {
        (self.busy_since, self.trial, self.is_enough) = (None, None, false);
        let is_new = !std::mem::replace(&mut self.is_resting, true);
        if is_new && self.feeds > 0 { PlanAction::EndAll } else { PlanAction::Nothing }
    }

    fn wants_more(&self, now: Instant) -> bool {
        let is_allowed = !self.is_over && !self.is_enough && self.not_before.is_none_or(|at| at <= now);
        is_allowed && self.feeds < MAX_FEEDS && self.busy_since.is_some_and(|since| since + BUSY_FOR <= now)
    }

    fn judge(&mut self, now: Instant, trial: Trial, pipes: usize, rate: f64, is_loaded: bool) -> PlanAction {
        let Some(since) = trial.since else { return PlanAction::Nothing };
        if !is_loaded {
            // The trial starts again when the download continues.
            self.trial = Some(Trial { since: Some(now), ..trial });
            return PlanAction::Nothing;
        }
        if now < since + TRIAL {
            return PlanAction::Nothing;
        }
        self.trial = None;
        // The pipes must be busy again for some time before the next feed.
        self.busy_since = None;
        // The part of the rate that is due to additional pipes does not count as a gain of the feed.
        let before = trial.before * pipes.max(trial.pipes) as f64 / trial.pipes as f64;
        if rate >= before * GAIN {
            return PlanAction::Keep(before, rate);
        }
        self.is_enough = true;
        let next = (self.feeds == 1).then(|| self.fail(now));
        PlanAction::EndOne(before, rate, next)
    }

    /// Records that the latest feed carries data.
    pub(super) fn began(&mut self, now: Instant) {
        if let Some(trial) = &mut self.trial {
            trial.since.get_or_insert(now);
        }
    }

    /// Records that a feed has ended as requested.
    pub(super) fn ended(&mut self) {
        self.feeds = self.feeds.saturating_sub(1);
    }

    /// Records that a feed was refused, or was cut after it had lasted for `lasted`.
    pub(super) fn cut(&mut self, now: Instant, lasted: Duration) -> AfterFailure {
        self.ended();
        // If an older feed was cut, the latest feed keeps running without a trial, because the rate before the trial included the
        // feed that was cut.
        self.trial = None;
        if lasted >= STABLE {
            self.failures = 0;
        }
        self.fail(now)
    }

    fn fail(&mut self, now: Instant) -> AfterFailure {
        self.failures += 1;
        if self.failures >= MAX_FAILURES {
            self.is_over = true;
            return AfterFailure::Never;
        }
        let pause = PAUSE * PAUSE_FACTOR.pow(self.failures - 1);
        self.not_before = Some(now + pause);
        AfterFailure::After(pause)
    }

    /// Records that feeds are not possible on this node.
    pub(super) fn give_up(&mut self) {
        self.ended();
        self.trial = None;
        self.is_over = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPES: usize = 4;
    const PACE: u64 = 700_000;
    const TICK: Duration = Duration::from_millis(500);

    /// Simulates a download over pipes and feeds of a given rate, in virtual time.
    struct Run {
        plan: FeedPlan,
        pipes: usize,
        now: Instant,
        bytes: u64,
        feeds: usize,
        /// Rate of one feed, in bytes per second.
        pace: u64,
        /// Maximum rate of the data's source, in bytes per second.
        source: u64,
        actions: Vec<PlanAction>,
    }

    impl Run {
        fn new(pace: u64) -> Self {
            let plan = FeedPlan::default();
            Self {
                plan,
                pipes: PIPES,
                now: Instant::now(),
                bytes: 0,
                feeds: 0,
                pace,
                source: u64::MAX,
                actions: Vec::new(),
            }
        }

        /// Executes the plan's requests for some time. Returns the requests, each with its time in seconds.
        fn pass(&mut self, seconds: u32) -> Vec<(f64, &'static str)> {
            let (began, mut said) = (self.now, Vec::new());
            for _ in 0..seconds * 2 {
                self.now += TICK;
                let capacity = self.pipes as u64 * PACE + self.feeds as u64 * self.pace;
                self.bytes += self.source.min(capacity) / 2;
                let sample = Sample { bytes: self.bytes, pipes: self.pipes, is_busy: self.source >= capacity };
                let action = self.plan.update(self.now, sample);
                let name = match action {
                    PlanAction::Nothing => continue,
                    PlanAction::Start(_) => {
                        self.feeds += 1;
                        self.plan.began(self.now);
                        "start"
                    }
                    PlanAction::Keep(..) => "keep",
                    PlanAction::EndOne(..) => {
                        self.feeds -= 1;
                        self.plan.ended();
                        "end one"
                    }
                    PlanAction::EndAll => {
                        (0..std::mem::take(&mut self.feeds)).for_each(|_| self.plan.ended());
                        "end all"
                    }
                };
                self.actions.push(action);
                said.push(((self.now - began).as_secs_f64(), name));
            }
            said
        }

        fn names(&mut self, seconds: u32) -> Vec<&'static str> {
            self.pass(seconds).into_iter().map(|(_, name)| name).collect()
        }

        fn cut(&mut self, lasted: Duration) -> AfterFailure {
            self.feeds -= 1;
            self.plan.cut(self.now, lasted)
        }
    }

    #[test]
    fn a_feed_comes_when_all_pipes_are_busy_and_others_while_each_of_them_helps() {
        let mut run = Run::new(10_000_000);
        let said = run.pass(30);
        assert!((1.0..2.1).contains(&said[0].0), "{said:?}");
        assert_eq!(
            said.iter().map(|(_, name)| *name).collect::<Vec<_>>(),
            ["start", "keep", "start", "keep", "start", "keep"]
        );
        let PlanAction::Keep(before, after) = run.actions[1] else { panic!("{:?}", run.actions) };
        assert!(before < 2.9e6 && after > 12e6, "{before} {after}");
    }

    #[test]
    fn a_further_one_that_brings_nothing_ends_and_no_other_is_tried_before_the_next_download() {
        let mut run = Run::new(10_000_000);
        // One feed can carry all of the data, but the pipes stay busy too.
        run.source = PIPES as u64 * PACE + 10_000_000;
        assert_eq!(run.names(60), ["start", "keep", "start", "end one"]);
        run.source = 0;
        assert_eq!(run.names(60), ["end all"]);
        run.source = u64::MAX;
        assert_eq!(run.names(5)[0], "start");
    }

    #[test]
    fn a_first_one_that_brings_nothing_ends_and_is_rarely_tried_again() {
        let mut run = Run::new(1000);
        let mut tried = 0;
        for _ in 0..20 {
            run.source = u64::MAX;
            tried += run.names(30).iter().filter(|name| **name == "start").count();
            run.source = 0;
            run.pass(30);
        }
        assert_eq!(tried, MAX_FAILURES as usize);
    }

    #[test]
    fn what_new_pipes_bring_is_not_the_merit_of_a_feed() {
        let mut run = Run::new(1000);
        assert_eq!(run.names(3), ["start"]);
        run.pipes *= 2;
        assert_eq!(run.names(6), ["end one"]);
    }

    #[test]
    fn no_feed_without_a_download_that_the_pipes_cannot_carry() {
        for source in [0, 1000, 400_000, PIPES as u64 * PACE * 9 / 10] {
            let mut run = Run::new(10_000_000);
            run.source = source;
            assert_eq!(run.names(60), Vec::<&str>::new(), "{source}");
        }
    }

    #[test]
    fn the_pause_after_a_cut_grows_until_none_is_started() {
        let mut run = Run::new(10_000_000);
        assert_eq!(run.names(3), ["start"]);
        assert_eq!(run.cut(Duration::ZERO), AfterFailure::After(PAUSE));
        assert_eq!((run.names(4), run.names(4)), (vec![], vec!["start"]));
        assert_eq!(run.cut(Duration::ZERO), AfterFailure::After(PAUSE * 4));
        assert_eq!((run.names(19), run.names(4)), (vec![], vec!["start"]));
        assert_eq!(run.cut(Duration::ZERO), AfterFailure::Never);
        assert_eq!(run.names(600), Vec::<&str>::new());
    }

    #[test]
    fn a_cut_after_a_long_time_does_not_count_with_the_others() {
        let mut run = Run::new(10_000_000);
        for _ in 0..10 {
            assert_eq!(run.names(30)[0], "start");
            while run.feeds > 0 {
                assert_eq!(run.cut(STABLE), AfterFailure::After(PAUSE));
            }
        }
    }

    #[test]
    fn where_feeds_are_not_possible_none_is_tried_again() {
        let mut run = Run::new(10_000_000);
        assert_eq!(run.names(3), ["start"]);
        run.feeds -= 1;
        run.plan.give_up();
        assert_eq!(run.names(600), Vec::<&str>::new());
    }
}
