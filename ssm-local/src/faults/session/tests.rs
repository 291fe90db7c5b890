use ssm_proto::{AgentMessage, DecodeError, Header, MessageBuf, PayloadType};
use uuid::Uuid;

use super::*;

const MILLIS: Duration = Duration::from_millis(1);

/// A session with faults, in virtual time. Messages are numbered in the order in which they are sent.
struct Bench {
    faults: SessionFaults,
    start: Instant,
    now: Instant,
    departed: i64,
    up: VecDeque<Bytes>,
    down: VecDeque<Bytes>,
}

/// Number and arrival time of each message that arrived.
type Arrivals = Vec<(i64, Duration)>;

impl Bench {
    fn new(specs: &[&str]) -> Self {
        Self::seeded(specs, 1)
    }

    fn seeded(specs: &[&str], seed: u64) -> Self {
        let now = Instant::now();
        let faults: Vec<Fault> = specs.iter().map(|spec| spec.parse().unwrap()).collect();
        let faults = SessionFaults::new(&faults, seed, now);
        Self { faults, start: now, now, departed: 0, up: VecDeque::new(), down: VecDeque::new() }
    }

    /// Sends one message in each direction.
    fn send(&mut self) {
        let up = message(MessageType::InputStreamData, self.departed);
        let down = message(MessageType::OutputStreamData, self.departed);
        self.faults.pass(self.now, Direction::Up, up, true, &mut self.up);
        self.faults.pass(self.now, Direction::Down, down, false, &mut self.down);
        self.departed += 1;
    }

    /// Lets this time pass without sending, and handles timeouts in the meantime.
    fn wait(&mut self, time: Duration) -> (Arrivals, Arrivals) {
        let end = self.now + time;
        let mut arrived = self.take();
        loop {
            let next = self.faults.poll_timeout().filter(|at| *at <= end);
            self.now = next.unwrap_or(end).max(self.now);
            self.faults.handle_timeout(self.now, &mut self.up, &mut self.down);
            let (up, down) = self.take();
            arrived.0.extend(up);
            arrived.1.extend(down);
            if next.is_none() {
                return arrived;
            }
        }
    }

    fn take(&mut self) -> (Arrivals, Arrivals) {
        let at = self.now - self.start;
        let number = |message: Bytes| AgentMessage::decode(message).map_or(-1, |message| message.sequence_number());
        let up = self.up.drain(..).map(|message| (number(message), at)).collect();
        let down = self.down.drain(..).map(|message| (number(message), at)).collect();
        (up, down)
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.faults.poll_action()).collect()
    }
}

fn message(message_type: MessageType, number: i64) -> Bytes {
    let mut header = Header::new(message_type, 1, Uuid::nil());
    header.sequence_number = number;
    header.payload_type = PayloadType::Output;
    header.seal(MessageBuf::from([b'x'; 880].as_slice()))
}

fn numbers(arrivals: &Arrivals) -> Vec<i64> {
    arrivals.iter().map(|(number, _)| *number).collect()
}

/// Returns which of ten messages in each direction arrive.
fn ten(specs: &[&str]) -> (Vec<i64>, Vec<i64>) {
    let mut bench = Bench::new(specs);
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        bench.send();
        let arrived = bench.wait(MILLIS);
        up.extend(numbers(&arrived.0));
        down.extend(numbers(&arrived.1));
    }
    let arrived = bench.wait(Duration::from_secs(60));
    up.extend(numbers(&arrived.0));
    down.extend(numbers(&arrived.1));
    (up, down)
}

const ALL: [i64; 10] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];

#[test]
fn without_faults_all_arrives() {
    assert_eq!(ten(&[]), (ALL.into(), ALL.into()));
}

#[test]
fn dropped_messages_do_not_arrive() {
    assert_eq!(ten(&["drop,direction=up,nth=5"]), (vec![0, 1, 2, 3, 5, 6, 7, 8], ALL.into()));
    assert_eq!(ten(&["drop,direction=down,times=3"]), (ALL.into(), ALL[3..].into()));
}

#[test]
fn probability_loses_about_as_many_and_always_the_same() {
    let lost = |seed| {
        let mut bench = Bench::seeded(&["drop,probability=0.1"], seed);
        (0..1000).for_each(|_| bench.send());
        2000 - bench.up.len() - bench.down.len()
    };
    assert!((130..270).contains(&lost(7)), "{}", lost(7));
    assert_eq!(lost(7), lost(7));
    assert_ne!((lost(7), lost(8), lost(9)), (lost(8), lost(9), lost(10)));
}

#[test]
fn only_acknowledgements_are_dropped() {
    let mut bench = Bench::new(&["drop-acks"]);
    bench.send();
    bench.faults.pass(bench.now, Direction::Up, message(MessageType::Acknowledge, 5), false, &mut bench.up);
    assert_eq!(numbers(&bench.take().0), [0]);
    let mut bench = Bench::new(&["drop,only=data"]);
    bench.send();
    bench.faults.pass(bench.now, Direction::Up, message(MessageType::Acknowledge, 5), false, &mut bench.up);
    assert_eq!(numbers(&bench.take().0), [5]);
}

#[test]
fn duplicates_arrive_twice() {
    assert_eq!(ten(&["duplicate,direction=down,nth=5"]), (ALL.into(), vec![0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 9]));
}

#[test]
fn only_first_transmissions_from_the_client_are_processed_twice() {
    let mut bench = Bench::new(&["process-twice,nth=2"]);
    let mut pass = |direction, message_type, is_new| {
        let message = message(message_type, 0);
        bench.faults.pass(bench.now, direction, message, is_new, &mut bench.up)
    };
    let hits: Vec<bool> = (0..4).map(|_| pass(Direction::Up, MessageType::InputStreamData, true)).collect();
    assert_eq!(hits, [false, true, false, true]);
    for _ in 0..4 {
        assert!(!pass(Direction::Up, MessageType::InputStreamData, false));
        assert!(!pass(Direction::Up, MessageType::Acknowledge, false));
        assert!(!pass(Direction::Down, MessageType::OutputStreamData, false));
    }
}

#[test]
fn reordered_messages_are_overtaken() {
    let (up, down) = ten(&["reorder,by=2.5ms,nth=4,direction=up"]);
    assert_eq!((up, down), (vec![0, 1, 2, 4, 5, 3, 6, 8, 9, 7], ALL.into()));
}

#[test]
fn delayed_messages_are_late_but_in_order() {
    let mut bench = Bench::new(&["delay,by=40ms,jitter=20ms,direction=down"]);
    for _ in 0..50 {
        bench.send();
        bench.now += MILLIS / 10;
    }
    let (up, down) = bench.wait(Duration::from_secs(1));
    assert!(up.iter().all(|(_, at)| *at < MILLIS * 6));
    assert_eq!(numbers(&down), (0..50).collect::<Vec<_>>());
    assert!(down.iter().all(|(_, at)| (MILLIS * 40..MILLIS * 66).contains(at)), "{down:?}");
    assert!(down.first().unwrap().1 < down.last().unwrap().1);
}

#[test]
fn a_rate_spreads_messages() {
    // Each message has 1000 bytes.
    let mut bench = Bench::new(&["rate,bytes=100000,direction=up"]);
    (0..5).for_each(|_| bench.send());
    let (up, down) = bench.wait(Duration::from_secs(1));
    assert_eq!(up.iter().map(|(_, at)| at.as_millis()).collect::<Vec<_>>(), [10, 20, 30, 40, 50]);
    assert!(down.iter().all(|(_, at)| at.is_zero()));
}

#[test]
fn a_slow_line_takes_only_so_much() {
    let mut bench = Bench::new(&["stall,direction=up"]);
    bench.wait(MILLIS);
    while !bench.faults.is_blocked(Direction::Up) {
        bench.send();
        assert!(bench.departed < 10_000);
    }
    assert!(!bench.faults.is_blocked(Direction::Down));
    let (mut up, mut down) = (VecDeque::new(), VecDeque::new());
    bench.faults.release_all(&mut up, &mut down);
    assert_eq!(i64::try_from(up.len()).unwrap(), bench.departed);
    assert!(!bench.faults.is_blocked(Direction::Up));
}

#[test]
fn a_stall_holds_everything_and_then_lets_it_go() {
    let mut bench = Bench::new(&["stall,after=100ms,for=300ms"]);
    bench.wait(MILLIS * 50);
    bench.send();
    assert_eq!(numbers(&bench.take().0), [0]);
    bench.wait(MILLIS * 100);
    bench.send();
    bench.send();
    let (up, down) = bench.wait(Duration::from_secs(1));
    assert_eq!(up, [(1, MILLIS * 400), (2, MILLIS * 400)]);
    assert_eq!(down, up);
}

/// Returns the decoding results of mangled messages, at the agent or at the client.
fn mangled(spec: &str) -> Vec<Result<AgentMessage, DecodeError>> {
    let mut bench = Bench::new(&[spec]);
    (0..20).for_each(|_| bench.send());
    let messages = if spec.ends_with("direction=down") { bench.down } else { bench.up };
    messages.into_iter().map(AgentMessage::decode).collect()
}

#[test]
fn mangled_messages_are_refused_for_the_right_reason() {
    for spec in ["corrupt,direction=down", "bad-digest,direction=down"] {
        assert!(mangled(spec).iter().all(|result| matches!(result, Err(DecodeError::BadDigest))), "{spec}");
    }
    // An agent accepts a wrong digest, so damaged messages to it get an invalid header.
    for spec in ["bad-header", "corrupt,direction=up", "bad-digest"] {
        let refused = |result: &_| matches!(result, Err(DecodeError::BadHeaderLength { .. }));
        assert!(mangled(spec).iter().all(refused), "{spec}");
    }
    let large = mangled("oversize");
    assert!(large.iter().all(|result| matches!(result, Err(DecodeError::PayloadTooLarge { length: 1_048_577 }))));
    // The messages are large, but valid.
    assert!(mangled("oversize,bytes=70000").iter().flatten().all(|message| message.payload().len() == 70_000));
    assert_eq!(mangled("corrupt,nth=2,direction=up").iter().filter(|result| result.is_ok()).count(), 10);
}

#[test]
fn the_service_closes_by_the_clock_or_by_messages() {
    let bye = Action::Close { code: 1000, reason: "Bye".into() };
    let mut bench = Bench::new(&["bye"]);
    bench.wait(MILLIS * 3_599_999);
    assert_eq!(bench.actions(), []);
    bench.wait(MILLIS);
    assert_eq!(bench.actions(), std::slice::from_ref(&bye));
    bench.wait(Duration::from_secs(7200));
    assert_eq!(bench.actions(), [bye.clone(), bye]);

    let mut bench = Bench::new(&["close,nth=3,times=2,code=4000,reason=enough"]);
    (0..10).for_each(|_| bench.send());
    let enough = Action::Close { code: 4000, reason: "enough".into() };
    assert_eq!(bench.actions(), [enough.clone(), enough]);
}

#[test]
fn events_become_actions() {
    let action = |spec: &str| {
        let mut bench = Bench::new(&[spec]);
        bench.wait(MILLIS);
        bench.actions()
    };
    assert_eq!(action("reset"), [Action::Reset]);
    assert_eq!(action("end,status=failed,text=gone"), [Action::End { failed: true, text: "gone".into() }]);
    let [pause, start] = [false, true].map(|start| Action::Publication { start, direction: Direction::Up });
    assert_eq!(action("pause-publication,direction=up"), [pause]);
    assert_eq!(action("start-publication,direction=up"), [start]);
    // Effects that do not concern a session have no effect here.
    assert_eq!(action("reboot"), []);
}

#[test]
fn too_many_messages_for_too_long_close_the_websocket() {
    let closed = |interval: Duration, seconds: u32| {
        let mut bench = Bench::new(&["message-limit"]);
        while bench.now < bench.start + Duration::from_secs(1) * seconds {
            bench.send();
            bench.wait(interval);
        }
        bench.actions().len()
    };
    // Two messages in each iteration: 1000 per second are tolerated without a time limit, 2000 per second for two seconds.
    assert_eq!(closed(MILLIS * 2, 10), 0);
    assert_eq!(closed(MILLIS, 2), 0);
    assert_eq!(closed(MILLIS, 3), 1);
    assert_eq!(closed(MILLIS, 7), 3);
}

#[test]
fn a_pause_within_the_burst_is_forgiven() {
    let mut bench = Bench::new(&["message-limit"]);
    for _ in 0..5 {
        for _ in 0..1500 {
            bench.send();
            bench.wait(MILLIS);
        }
        bench.wait(Duration::from_secs(2));
    }
    assert_eq!(bench.actions(), []);
}

#[test]
fn a_black_hole_is_gone_with_its_websocket() {
    let mut bench = Bench::new(&["black-hole,after=1s"]);
    bench.wait(MILLIS * 999);
    assert!(!bench.faults.is_black_hole());
    bench.wait(Duration::from_secs(3600));
    assert!(bench.faults.is_black_hole());
    bench.faults.handle_connected(bench.now);
    assert!(!bench.faults.is_black_hole());
    let mut bench = Bench::new(&["black-hole,for=1s"]);
    bench.wait(MILLIS * 999);
    assert!(bench.faults.is_black_hole());
    bench.wait(MILLIS);
    assert!(!bench.faults.is_black_hole());
}

#[test]
fn a_deaf_agent_blocks_one_way() {
    let mut bench = Bench::new(&["agent-deaf,for=1s"]);
    bench.wait(MILLIS);
    assert!(bench.faults.is_blocked(Direction::Up) && !bench.faults.is_blocked(Direction::Down));
    bench.wait(Duration::from_secs(1));
    assert!(!bench.faults.is_blocked(Direction::Up));
}

#[test]
fn messages_are_lost_while_the_agent_is_away() {
    let mut bench = Bench::new(&["agent-away,after=1s,for=1s"]);
    let publication = |start| Action::Publication { start, direction: Direction::Down };
    bench.wait(Duration::from_secs(1));
    assert_eq!(bench.actions(), [publication(false)]);
    bench.send();
    bench.wait(Duration::from_secs(1));
    assert_eq!(bench.actions(), [publication(true)]);
    bench.send();
    assert_eq!(numbers(&bench.take().0), [1]);
}
