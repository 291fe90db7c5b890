//! The keys of a tunnel: every option of `forward` that describes a tunnel, with the option's name, and a few keys
//! without an option.

use std::ffi::OsString;
use std::sync::LazyLock;

use clap::{Arg, ArgAction, ArgMatches, Args as _, Command};

use crate::args::TunnelArgs;
use crate::suggestion;

/// The options of `forward`.
pub(super) static OPTIONS: LazyLock<Command> =
    LazyLock::new(|| TunnelArgs::augment_args(Command::new("forward").no_binary_name(true)));

/// Options that concern the command rather than a tunnel.
const NOT_KEYS: [&str; 3] = ["local", "config", "refresh"];

/// The shape of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// `true` or `false`.
    Flag,
    /// A string or a number.
    One,
    /// A string, or an array of them.
    Many,
    /// A table of strings and numbers.
    Pairs,
}

impl Shape {
    /// The expected value, for errors.
    pub(super) fn expected(self) -> &'static str {
        match self {
            Self::Flag => "expected true or false",
            Self::One => "expected a string or a number",
            Self::Many => "expected a string or an array of strings",
            Self::Pairs => "expected a table, for example { portNumber = \"3306\" }",
        }
    }
}

/// A key of a tunnel or of the defaults.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// The name in the file.
    pub(super) name: &'static str,
    /// The shape of the value.
    pub(super) shape: Shape,
    /// The option of `forward` that the key sets.
    pub(super) option: Option<&'static Arg>,
    /// The description of a key without an option: one sentence or more.
    about: &'static str,
    /// Whether the key may be a default of all tunnels.
    pub(super) may_be_default: bool,
    /// Whether a project's file may contain the key. Otherwise only the user's own file may.
    pub(super) is_allowed_in_project: bool,
}

impl Key {
    const fn own(name: &'static str, shape: Shape, may_be_default: bool, about: &'static str) -> Self {
        Self { name, shape, option: None, about, may_be_default, is_allowed_in_project: true }
    }

    fn of_option(option: &'static Arg) -> Option<Self> {
        let name = option.get_long().filter(|name| !NOT_KEYS.contains(name))?;
        let (name, shape) = match (name, option.get_action()) {
            ("parameter", _) => ("parameters", Shape::Pairs),
            (name, ArgAction::SetTrue) => (name, Shape::Flag),
            (name, ArgAction::Append) => (name, Shape::Many),
            (name, _) => (name, Shape::One),
        };
        let may_be_default = !matches!(name, "kubeconfig" | "iam-auth");
        // Excluded are keys that decide which servers are trusted, what is written, and what a document does on the node. This is
        // an allow list, so that a new option is excluded until it has been considered.
        let is_allowed_in_project = matches!(
            name,
            "target"
                | "profile"
                | "region"
                | "sessions"
                | "keep-alive"
                | "message-rate"
                | "payload-size"
                | "wait-ready"
                | "wait-connected"
                | "connect-timeout"
                | "linger"
                | "hold"
                | "no-restart"
                | "any"
                | "reason"
                | "iam-auth"
        );
        Some(Self { name, shape, option: Some(option), about: "", may_be_default, is_allowed_in_project })
    }

    /// Returns the key's description, in one sentence or more.
    pub(super) fn about(&self) -> String {
        let help = self.option.and_then(|option| option.get_long_help().or_else(|| option.get_help()));
        help.map_or_else(|| self.about.to_owned(), ToString::to_string)
    }

    /// Returns the equivalent words of a command line.
    pub(super) fn words(&self, value: &Value) -> Vec<OsString> {
        let Some(long) = self.option.and_then(Arg::get_long) else { return Vec::new() };
        match value {
            Value::Flag(true) => vec![format!("--{long}").into()],
            Value::Flag(false) => Vec::new(),
            Value::Texts(texts) => texts.iter().map(|text| format!("--{long}={text}").into()).collect(),
        }
    }
}

/// A value that has the shape of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// The value of a flag.
    Flag(bool),
    /// The value of any other key. Pairs are written as `key=value`.
    Texts(Vec<String>),
}

/// All keys, in the order of the help.
pub(super) static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| {
    let own = [
        Key::own(
            "remote",
            Shape::One,
            false,
            "Where connections go: host:port, a port of the node itself, or a service such as rds:NAME.",
        ),
        Key::own(
            "local",
            Shape::One,
            false,
            "Where to listen: port, bind:port, or unix:/path. Default: the remote's port on 127.0.0.1.",
        ),
        Key::own("groups", Shape::Many, true, "Names under which `up` opens this tunnel together with others."),
        Key::own("lazy", Shape::Flag, true, "With `up`: start the session with the first connection."),
        Key::own(
            "idle",
            Shape::One,
            true,
            "With `up`, for a lazy tunnel: end the session after this time without a connection. Default: 5m.",
        ),
    ];
    own.into_iter().chain(OPTIONS.get_arguments().filter_map(Key::of_option)).collect()
});

/// Returns the key of this name.
pub(super) fn key(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Returns the key that was probably meant.
pub(super) fn suggestion(name: &str) -> Option<&'static str> {
    let name = name.to_lowercase().replace('_', "-");
    let meant = match &*name {
        "document" => "document-name",
        "host" | "port" | "remote-host" | "service" => "remote",
        "listen" | "bind" | "local-port" => "local",
        "node" | "instance" | "instance-id" | "bastion" => "target",
        _ => return suggestion::nearest(&name, KEYS.iter().map(|key| key.name)),
    };
    Some(meant)
}

/// Returns the options of `forward` that were given on a command line, as words.
pub(crate) fn given(matches: &ArgMatches) -> Vec<OsString> {
    let mut words = Vec::new();
    for option in OPTIONS.get_arguments() {
        let (id, Some(long)) = (option.get_id(), option.get_long()) else { continue };
        let is_known = matches.ids().any(|known| known == id);
        if !is_known || matches.value_source(id.as_str()) != Some(clap::parser::ValueSource::CommandLine) {
            continue;
        }
        if !option.get_action().takes_values() {
            words.push(format!("--{long}").into());
            continue;
        }
        for value in matches.get_raw(id.as_str()).into_iter().flatten() {
            let mut word = OsString::from(format!("--{long}="));
            word.push(value);
            words.push(word);
        }
    }
    words
}

/// Returns the name of the option that a word of [`given`] sets.
pub(super) fn option_of(word: &OsString) -> Option<&str> {
    let word = word.to_str()?.strip_prefix("--")?;
    Some(word.split_once('=').map_or(word, |(name, _)| name))
}
