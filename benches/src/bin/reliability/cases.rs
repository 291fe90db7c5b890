//! The faults of `docs/faults.md`, and the effect that each may have on a connection.

/// The possible effect of a fault on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// No effect: the connection delivers every byte.
    Exact,
    /// The connection ends with a reset: its session has ended, or its destination was never reached.
    Reset,
}

/// One row of the matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// The faults, which are active at the same time.
    pub(crate) faults: &'static [&'static str],
    pub(crate) expect: Expect,
    /// Whether the faults are active before the session starts, instead of when it is ready.
    pub(crate) from_the_start: bool,
    /// Whether the row is part of the quick run.
    pub(crate) quick: bool,
    /// Whether a relay carries the connections, over several sessions.
    pub(crate) relay: bool,
}

const fn exact(faults: &'static [&'static str]) -> Case {
    Case { faults, expect: Expect::Exact, from_the_start: false, quick: false, relay: false }
}

const fn reset(faults: &'static [&'static str]) -> Case {
    Case { expect: Expect::Reset, ..exact(faults) }
}

const fn quick(case: Case) -> Case {
    Case { quick: true, ..case }
}

const fn from_the_start(case: Case) -> Case {
    Case { from_the_start: true, ..case }
}

/// A row with a relay. With a relay, a connection delivers every byte even if sessions end.
const fn relayed(case: Case) -> Case {
    Case { relay: true, expect: Expect::Exact, ..case }
}

/// All codes with which the service may close a WebSocket.
const CODES: &[&str] = &[
    "close,after=100ms,code=1000",
    "close,after=300ms,code=1001",
    "close,after=500ms,code=1002",
    "close,after=700ms,code=1003",
    "close,after=900ms,code=1007",
    "close,after=1100ms,code=1008",
    "close,after=1300ms,code=1009",
    "close,after=1500ms,code=1011",
    "close,after=1700ms,code=1012",
    "close,after=1900ms,code=1013",
    "close,after=2100ms,code=3000",
    "close,after=2300ms,code=4001",
];

/// The fault for an agent without multiplexing, which carries one connection at a time.
pub(crate) const ONE_AT_A_TIME: &str = "agent-version,version=3.0.196.0";

/// All rows, in the order of `docs/faults.md`.
pub(crate) const CASES: &[Case] = &[
    exact(&[]),
    quick(exact(&["bye,every=500ms"])),
    exact(CODES),
    quick(exact(&["reset,every=500ms"])),
    exact(&["reset,nth=300"]),
    quick(exact(&["black-hole,after=500ms"])),
    exact(&["stall,after=300ms,for=1s"]),
    exact(&["stall,after=300ms,for=1s,direction=up"]),
    exact(&["stall,after=300ms,for=1s,direction=down"]),
    // Outages longer than the linger of a half-closed connection.
    exact(&["stall,after=300ms,for=7s"]),
    exact(&["stall,after=300ms,for=7s,direction=down"]),
    exact(&["message-limit,limit=300,bear=1s"]),
    exact(&["delay,by=40ms,jitter=10ms"]),
    exact(&["rate,bytes=4000000"]),
    quick(exact(&["drop,probability=0.01"])),
    from_the_start(exact(&["drop,probability=0.1,times=30"])),
    exact(&["drop-acks,direction=up,probability=0.2"]),
    exact(&["drop-acks,direction=down,probability=0.2"]),
    exact(&["duplicate,nth=10"]),
    exact(&["reorder,probability=0.05,by=5ms"]),
    from_the_start(exact(&["reorder,probability=0.3,by=5ms,times=50", "duplicate,probability=0.5,times=50"])),
    quick(exact(&["corrupt,nth=100"])),
    exact(&["bad-digest,nth=100"]),
    exact(&["bad-header,nth=100"]),
    exact(&["oversize,only=data,nth=200,times=5"]),
    // A connection must not receive bytes twice. Only a reset can prevent that (AGENT-8).
    quick(reset(&["process-twice,nth=300"])),
    exact(&["pause-publication,direction=up,every=400ms", "start-publication,direction=up,after=600ms,every=400ms"]),
    exact(&[
        "pause-publication,direction=down,every=400ms",
        "start-publication,direction=down,after=600ms,every=400ms",
    ]),
    exact(&["pause-publication,direction=down,after=300ms"]),
    quick(reset(&["end,after=700ms,status=terminated"])),
    reset(&["end,after=700ms,status=failed,text=The instance is gone."]),
    reset(&["timed-out,after=700ms"]),
    exact(&["agent-away,after=300ms,for=1s"]),
    exact(&["agent-deaf,after=300ms,for=1s"]),
    quick(exact(&["agent-away,after=300ms,for=7s"])),
    exact(&["agent-deaf,after=300ms,for=7s"]),
    reset(&["restart-agent,after=700ms"]),
    quick(reset(&["reboot,after=700ms,for=1s"])),
    from_the_start(exact(&[ONE_AT_A_TIME])),
    from_the_start(exact(&["agent-version,version=3.1.1511.0"])),
    from_the_start(exact(&["agent-version,version=3.3.987.0"])),
    // These agents do not report the end of a connection. It is detected after some seconds in which the data channel
    // is connected.
    from_the_start(exact(&[ONE_AT_A_TIME, "bye,every=500ms,times=6", "drop,probability=0.01"])),
    from_the_start(exact(&["agent-version,version=3.1.1511.0", "bye,every=500ms", "drop,probability=0.01"])),
    exact(&["slow-dial,by=1s"]),
    reset(&["fail-dial,nth=2"]),
    reset(&["deaf-destination,for=6s", "end,after=6s"]),
    exact(&["api,operation=ResumeSession,answer=throttled,times=4", "bye,after=500ms"]),
    exact(&["api,operation=ResumeSession,answer=error,times=4", "bye,after=500ms"]),
    exact(&["api,operation=ResumeSession,answer=unavailable,times=4", "bye,after=500ms"]),
    exact(&["api,operation=ResumeSession,answer=silence,times=1", "bye,after=500ms"]),
    exact(&["api,operation=ResumeSession,answer=expired-token,times=2", "bye,after=500ms"]),
    exact(&["api,operation=ResumeSession,answer=new-url", "bye,every=500ms"]),
    quick(exact(&["expired-credentials,operation=ResumeSession,for=1500ms", "bye,after=500ms"])),
    exact(&["expired-credentials,operation=ResumeSession,for=7s", "bye,after=500ms"]),
    exact(&["bye,every=2s"]),
    reset(&["api,operation=ResumeSession,answer=no-token,times=1", "bye,after=700ms"]),
    reset(&["api,operation=ResumeSession,answer=forbidden,times=1", "bye,after=700ms"]),
    reset(&["api,operation=StartSession,answer=throttled,times=4", "end,after=700ms"]),
    reset(&["api,operation=StartSession,answer=unavailable,times=4", "end,after=700ms"]),
    reset(&["api,operation=StartSession,answer=expired-credentials,times=2", "end,after=700ms"]),
    reset(&["api,operation=StartSession,answer=expired-token,times=1", "end,after=700ms"]),
    reset(&["api,operation=StartSession,answer=no-token,times=1", "end,after=700ms"]),
    quick(exact(&["bye,every=300ms", "drop,probability=0.02", "reorder,probability=0.02,by=5ms", "duplicate,nth=20"])),
    relayed(exact(&[])),
    relayed(exact(&["bye,every=500ms"])),
    relayed(exact(&["reset,every=500ms"])),
    relayed(exact(&["black-hole,after=500ms"])),
    relayed(exact(&["stall,after=300ms,for=7s"])),
    relayed(exact(&["message-limit,limit=300,bear=1s"])),
    relayed(exact(&["delay,by=40ms,jitter=10ms"])),
    relayed(exact(&["rate,bytes=4000000"])),
    // The faults are also active while the relay is placed.
    relayed(from_the_start(exact(&["drop,probability=0.01", "reorder,probability=0.05,by=5ms", "duplicate,nth=10"]))),
    relayed(exact(&["corrupt,nth=100"])),
    quick(relayed(exact(&["process-twice,nth=600,times=4"]))),
    relayed(exact(&[
        "pause-publication,direction=down,every=400ms",
        "start-publication,direction=down,after=600ms,every=400ms",
    ])),
    quick(relayed(exact(&["end,after=700ms,times=4,status=terminated"]))),
    relayed(exact(&["end,every=700ms,times=8,status=terminated"])),
    quick(relayed(exact(&["end,nth=1000,times=3"]))),
    relayed(exact(&["end,nth=600"])),
    relayed(exact(&["timed-out,after=700ms,times=4"])),
    relayed(exact(&["agent-away,after=300ms,for=7s"])),
    relayed(exact(&["agent-deaf,after=300ms,for=7s"])),
    // The relay continues, because it is not a child of the agent.
    relayed(exact(&["restart-agent,after=700ms"])),
    relayed(from_the_start(exact(&["agent-version,version=3.1.1511.0"]))),
    relayed(exact(&["slow-dial,by=1s"])),
    relayed(exact(&["fail-dial,nth=2"])),
    relayed(exact(&["deaf-destination,for=6s", "end,after=6s,times=4"])),
    relayed(exact(&["api,operation=ResumeSession,answer=no-token,times=1", "bye,after=700ms"])),
    relayed(exact(&["expired-credentials,operation=ResumeSession,for=7s", "bye,after=500ms"])),
    quick(relayed(exact(&["api,operation=StartSession,answer=throttled,times=4", "end,after=700ms,times=4"]))),
    relayed(exact(&["api,operation=StartSession,answer=unavailable,times=4", "end,after=700ms,times=4"])),
    relayed(exact(&[
        "bye,every=300ms",
        "drop,probability=0.02",
        "reorder,probability=0.02,by=5ms",
        "duplicate,nth=20",
    ])),
];
