use super::*;

#[test]
fn what_is_written_is_read_again() {
    let samples = [
        "close,every=10s,code=4000,reason=Well, goodbye",
        "reset,nth=100,times=3",
        "black-hole,after=1.5s,for=20s",
        "stall,direction=up,for=250ms",
        "delay,by=40ms,jitter=10ms,direction=down",
        "rate,bytes=100000",
        "message-limit,limit=500,bear=3s,code=1008,reason=too much",
        "drop,probability=0.25,only=acks,every=1m,for=1s",
        "duplicate,nth=2",
        "reorder,by=5ms",
        "corrupt",
        "bad-digest,only=data",
        "bad-header,times=1",
        "oversize,bytes=2000000",
        "process-twice,nth=100,times=2",
        "pause-publication,direction=up",
        "start-publication,direction=down,after=1h",
        "agent-away,for=1s",
        "agent-deaf,after=2h",
        "end,status=failed,text=So long, and thanks",
        "restart-agent,every=1h",
        "reboot,for=30s,text=back soon",
        "agent-version,version=3.0.196.0,times=1",
        "slow-dial,by=2s",
        "fail-dial,nth=2",
        "deaf-destination",
        "api,operation=ResumeSession,answer=new-url",
    ];
    for (sample, name) in samples.iter().zip(EFFECTS) {
        let fault: Fault = sample.parse().unwrap();
        assert!(sample.starts_with(name), "{sample} does not begin with {name}");
        assert_eq!(fault.to_string().parse::<Fault>().unwrap(), fault, "{sample}: {fault}");
    }
    assert_eq!(samples.len(), EFFECTS.len());
    for spec in ["message-limit,only=any", "message-limit", "drop,only=any"] {
        let fault: Fault = spec.parse().unwrap();
        assert_eq!(fault.to_string().parse::<Fault>().unwrap(), fault, "{spec}: {fault}");
    }
    for (_, answer) in ANSWERS {
        let fault = Fault::new(Effect::Api { operation: None, answer });
        assert_eq!(fault.to_string().parse::<Fault>().unwrap(), fault);
    }
}

#[test]
fn presets_take_further_keys() {
    for (name, text) in PRESETS {
        assert_eq!(name.parse::<Fault>().unwrap(), text.parse().unwrap());
    }
    assert_eq!("bye,every=5s".parse::<Fault>().unwrap(), "close,every=5s,reason=Bye".parse().unwrap());
}

#[test]
fn every_example_of_the_manual_is_read_and_every_effect_is_in_it() {
    let manual = include_str!("../../../../docs/faults.md");
    let rows = manual.lines().filter_map(|line| line.strip_prefix("| `"));
    let specs: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
    let (keys, specs): (Vec<&str>, Vec<&str>) = specs.iter().partition(|spec| spec.contains("=…"));
    assert!(keys.len() > 5);
    for spec in &specs {
        if let Err(error) = spec.parse::<Fault>() {
            panic!("{spec}: {error}");
        }
    }
    for name in EFFECTS.into_iter().chain(PRESETS.map(|(name, _)| name)) {
        assert!(specs.iter().any(|spec| spec.split(',').next() == Some(name)), "{name} is missing");
    }
}

#[test]
fn mistakes_are_named() {
    let error = |text: &str| text.parse::<Fault>().unwrap_err().to_string();
    assert!(error("explode").starts_with("unknown fault \"explode\"; the faults are: close, reset, "));
    assert_eq!(error("drop,often"), "drop has no key \"often\"");
    assert_eq!(error("drop,chance=1"), "drop has no key \"chance\"");
    assert_eq!(error("reset,direction=up"), "reset has no key \"direction\"");
    assert_eq!(error("process-twice,direction=up"), "process-twice has no key \"direction\"");
    assert_eq!(error("reboot,nth=2"), "reboot has no key \"nth\"");
    assert_eq!(error("drop,probability=2"), "probability=\"2\": a number from 0 to 1 is expected");
    assert_eq!(error("close,every=0s"), "every=\"0s\": a duration above 0 is expected");
    assert_eq!(error("slow-dial"), format!("by=\"\": {A_DURATION} is expected"));
    for bad in ["5", "5 parsecs", "-1s", "s", "1e300s", "nans"] {
        assert_eq!(duration(bad), None, "{bad}");
    }
    let json = crate::Faults::from_json(r#"{"faults": ["drop,p=1"]}"#).unwrap_err().to_string();
    assert!(json.contains("drop has no key \\\"p\\\"") || json.contains("drop has no key \"p\""), "{json}");
}
