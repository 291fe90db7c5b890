use std::fs;

use clap::CommandFactory as _;

use super::keys::{KEYS, Shape};
use super::*;
use crate::args::Cli;
use crate::spec::ForwardRequest;

/// A user's file and a project's file, each in a separate folder.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new(user: &str, project: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let this = Self { folder };
        this.write("user/config.toml", user);
        if !project.is_empty() {
            this.write(&format!("project/{PROJECT_FILE}"), project);
        }
        this
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn load(&self) -> Result<Config, String> {
        let inner = self.folder.path().join("project/src/deep");
        fs::create_dir_all(&inner).unwrap();
        let loaded = merge::load(None, Some(&self.folder.path().join("user/config.toml")), Some(&inner));
        loaded.map_err(|failure| self.shown(&failure))
    }

    fn tunnel(&self, name: &str, given: &[&str]) -> Result<Tunnel, String> {
        let given: Vec<OsString> = given.iter().map(Into::into).collect();
        self.load()?.tunnel(name, &given).map_err(|failure| self.shown(&failure))
    }

    /// Removes the name of the folder, which changes with each run.
    fn shown(&self, failure: &Failure) -> String {
        failure.shown().replace(&format!("{}/", self.folder.path().display()), "")
    }
}

fn of_user(text: &str) -> Files {
    Files::new(text, "")
}

const DB: &str = "[tunnels.db]\ntarget = \"i-1\"\nremote = \"db.internal:5432\"\n";

#[test]
fn a_tunnel_is_what_forward_would_have_got() {
    let files = of_user(
        "[defaults]\nregion = \"eu-central-1\"\nsessions = 2\n
         [tunnels.db]\ntarget = \"tag:Role=bastion\"\nremote = \"db.internal:5432\"\nlocal = 15432\nsessions = \"auto\"\n
         wait-ready = true\nno-restart = false\nparameters = { a = \"b,c\", n = 1 }\ndocument-name = \"Mine\"\nlazy = true\nidle = \"90s\"\n
         [tunnels.rds]\nremote = \"rds:orders\"\n",
    );
    let Tunnel { name, args, .. } = files.tunnel("db", &[]).unwrap();
    assert_eq!((&*name, args.lazy), ("db", Some(std::time::Duration::from_secs(90))));
    let texts: Vec<_> = args.forwards.iter().map(ForwardRequest::text).collect();
    assert_eq!((args.target(), texts), (Some("tag:Role=bastion"), vec!["15432:db.internal:5432"]));
    assert_eq!(args.aws.region.as_deref(), Some("eu-central-1"));
    assert_eq!((args.wait_ready, args.no_restart), (true, false));
    assert_eq!(args.pool.sessions, ssm_forward::PoolSize::default());
    assert_eq!(args.session.parameters, [("a".into(), "b,c".into()), ("n".into(), "1".into())]);
    assert_eq!(args.session.document_name.as_deref(), Some("Mine"));
    let rds = files.tunnel("rds", &[]).unwrap().args;
    assert_eq!((rds.target(), rds.pool.sessions), (None, ssm_forward::PoolSize::Fixed(2)));
    assert!(matches!(rds.forwards.as_slice(), [ForwardRequest::Service(service)] if service.listen.is_none()));
}

#[test]
fn the_command_line_goes_before_the_file() {
    let files = of_user(&format!("{DB}region = \"eu-central-1\"\nprofile = \"p\"\nsessions = 2\n"));
    let args = files.tunnel("db", &["--region=eu-west-1", "--target=i-2"]).unwrap().args;
    assert_eq!((args.aws.region.as_deref(), args.target()), (Some("eu-west-1"), Some("i-2")));
    assert_eq!((args.aws.profile.as_deref(), args.pool.sessions), (Some("p"), ssm_forward::PoolSize::Fixed(2)));
    // With --local there is no account, and the only node is this machine.
    let args = files.tunnel("db", &["--local"]).unwrap().args;
    assert_eq!((args.aws.local, args.aws.profile, args.aws.region), (true, None, None));
}

#[test]
fn the_local_port_is_by_default_the_remotes() {
    let files = of_user(
        "[defaults]\ntarget = \"i-1\"\n[tunnels]\na.remote = 9100\nb.remote = \"[fd00::1]:80\"\nc = { remote = \"x.y:22\", local = \"unix:sock\" }\n",
    );
    let text = |name| files.tunnel(name, &[]).unwrap().args.forwards[0].text().to_owned();
    assert_eq!((text("a"), text("b")), ("9100:9100".into(), "80:[fd00::1]:80".into()));
    assert_eq!(text("c"), format!("unix:{}/user/sock:x.y:22", files.folder.path().display()));
}

#[test]
fn mistakes_are_shown_with_their_place_and_a_suggestion() {
    let error =
        of_user("[tunnels.db]\ntarget = \"i-1\"\nregoin = \"eu-central-1\"\nremote = \"db:1\"\n").load().unwrap_err();
    assert_eq!(
        error,
        "unknown key `regoin`
 --> user/config.toml:3:1
  |
3 | regoin = \"eu-central-1\"
  | ^^^^^^
  |
  = help: did you mean `region`?"
    );
    for (text, parts) in [
        (
            "[tunnels.db]\nconnect_timeout = 3\n",
            &["unknown key `connect_timeout`", "did you mean `connect-timeout`?"][..],
        ),
        ("[tunnels.db]\ndocument = \"x\"\n", &["did you mean `document-name`?"]),
        ("[tunnel.db]\n", &["unknown key `tunnel`", "did you mean `tunnels`?"]),
        ("region = \"x\"\n", &["unknown key `region`", "[defaults]"]),
        ("[tunnels.db]\nlazy = \"yes\"\n", &["wrong type for `lazy`", "^^^^^ expected true or false"]),
        ("[tunnels.db]\nremote = 1\nremote = 2\n", &["duplicate key", "3 | remote = 2"]),
        ("[tunnels.db\n", &[":1:"]),
        ("[tunnels.rds-x]\n[tunnels.\"rds:x\"]\n", &["`rds:x` cannot be the name", "letters"]),
        ("[tunnels.i-0123]\n", &["`i-0123` cannot be the name", "looks like a managed node"]),
        ("[defaults]\nremote = 1\n", &["`remote` cannot be a default"]),
        ("include = [\"missing.toml\"]\n", &["cannot include missing.toml", "1 | include = [\"missing.toml\"]"]),
        (
            "[tunnels]\nx = { groups = [\"y\"] }\ny = { }\n",
            &["`y` is a group and a tunnel", "- the tunnel", "^^^^^ the group"],
        ),
    ] {
        let error = of_user(text).load().unwrap_err();
        parts.iter().for_each(|part| assert!(error.contains(part), "{text:?}, {part:?}: {error}"));
    }
}

#[test]
fn values_of_a_tunnel_are_checked_when_it_is_used() {
    for (text, part) in [
        ("remote = \"db:x\"", "a host, and no port after it"),
        ("remote = 80\nlocal = \"x\"", "5 | local = \"x\""),
        ("remote = 80\nsessions = 0", "`sessions`: at least one session is needed"),
        ("remote = 80\nhold = \"soon\"", "expected a duration"),
        ("remote = 80\nidle = \"soon\"", "`idle`: expected a duration"),
        ("remote = 80\nreason = \"${SSM_FORWARD_NO_SUCH}\"", "SSM_FORWARD_NO_SUCH is not set"),
        ("", "the tunnel `x` has no `remote`"),
    ] {
        let files =
            of_user(&format!("[defaults]\ntarget = \"i-1\"\n[tunnels.x]\n{text}\n\n{}", DB.replace(".db", ".ok")));
        assert!(files.tunnel("ok", &[]).is_ok(), "{text}");
        let error = files.tunnel("x", &[]).unwrap_err();
        assert!(error.contains(part) || part.starts_with("a host"), "{text}: {error}");
        assert!(error.contains("user/config.toml:"), "{error}");
        assert!(files.load().unwrap().check().is_err());
    }
    let error = of_user("[tunnels.x]\nremote = \"db.internal:1\"\n").tunnel("x", &[]).unwrap_err();
    assert!(error.contains("has no `target`"), "{error}");
}

#[test]
fn all_problems_are_told_in_their_order() {
    let error = of_user("[tunnels.b]\nx = 1\n[tunnels.a]\ny = 1\n[defaults]\nz = 1\n").load().unwrap_err();
    let found: Vec<_> = ["`x`", "`y`", "`z`"].iter().map(|key| error.find(key).expect(key)).collect();
    assert!(found.is_sorted(), "{error}");
}

#[test]
fn names_and_groups_are_selected_once_and_typos_are_told() {
    let files = of_user(
        "[defaults]\ntarget = \"i-1\"\n[tunnels]\na = { remote = 1, groups = [\"g\"] }\nb = { remote = 2, groups = [\"g\", \"h\"] }\nlonger = { remote = 3 }\n",
    );
    let config = files.load().unwrap();
    let select = |wanted: &[&str]| {
        let wanted: Vec<_> = wanted.iter().map(|&name| name.to_owned()).collect();
        let names = |tunnels: Vec<Tunnel>| tunnels.into_iter().map(|tunnel| tunnel.name).collect::<Vec<_>>().join(" ");
        config.select(&wanted, &[]).map(names).map_err(|failure| failure.message)
    };
    assert_eq!(select(&["b", "g"]).as_deref(), Ok("b a"));
    assert_eq!(select(&[]).as_deref(), Ok("a b longer"));
    assert_eq!(select(&["h"]).as_deref(), Ok("b"));
    let error = select(&["lnger"]).unwrap_err();
    assert!(error.contains("did you mean `longer`? There are: a, b, longer, g, h"), "{error}");
    assert!(select(&["zzz"]).unwrap_err().ends_with("there is no tunnel `zzz`; there are: a, b, longer, g, h"));
    assert!(of_user("").load().unwrap().select(&[], &[]).unwrap_err().message.starts_with("there are no tunnels in "));
}

#[test]
fn files_are_merged_and_the_users_keys_win() {
    let files = Files::new(
        "[defaults]\nprofile = \"mine\"\nregion = \"us-east-1\"\n[tunnels.db]\nlocal = 15432\n[tunnels.own]\ntarget = \"i-9\"\nremote = 1\n",
        "include = [\"more/more.toml\"]\n[defaults]\nregion = \"eu-central-1\"\n[tunnels.db]\ntarget = \"i-1\"\nremote = \"db.internal:5432\"\nlocal = 5432\n",
    );
    files.write("project/more/more.toml", "[tunnels.more]\ntarget = \"i-3\"\nremote = 3\n");
    let args = files.tunnel("db", &[]).unwrap().args;
    assert_eq!(args.forwards[0].text(), "15432:db.internal:5432");
    assert_eq!((args.aws.profile.as_deref(), args.aws.region.as_deref()), (Some("mine"), Some("eu-central-1")));
    assert_eq!(files.tunnel("own", &[]).unwrap().args.aws.region.as_deref(), Some("us-east-1"));
    assert_eq!(files.tunnel("more", &[]).unwrap().args.aws.region.as_deref(), Some("eu-central-1"));
    files.write("project/more/more.toml", "[tunnels.db]\nremote = 3\n");
    let error = files.load().unwrap_err();
    assert!(error.contains("the tunnel `db` is defined twice") && error.contains("- first here"), "{error}");
    assert!(error.contains("project/more/more.toml:1:10"), "{error}");
}

#[test]
fn a_projects_file_can_do_no_harm() {
    for (text, part) in [
        ("endpoint-url = \"https://evil.example\"", "`endpoint-url` is not allowed in a project's file"),
        ("allow-stream-host = \"evil.example\"", "not allowed"),
        ("stream-endpoint = \"evil.example\"", "not allowed"),
        ("rds-ca = \"evil.pem\"", "not allowed"),
        ("ca-bundle = \"evil.pem\"", "not allowed"),
        ("kubeconfig = \"../../.bashrc\"", "not allowed"),
        ("document-name = \"AWS-StartInteractiveCommand\"", "not allowed"),
        ("parameters = { command = \"id\" }", "not allowed"),
        ("relay = \"ephemeral\"", "not allowed"),
        ("local = \"*:8080\"", "other machines reach"),
        ("local = \"unix:../outside\"", "only in its own folder"),
        ("local = \"unix:/etc/x\"", "only in its own folder"),
        ("reason = \"${AWS_SECRET_ACCESS_KEY:-}\"", "cannot read the environment variable AWS_SECRET_ACCESS_KEY"),
    ] {
        let tunnel = format!("[tunnels.x]\ntarget = \"i-1\"\nremote = 80\n{text}\n");
        let error = Files::new("", &tunnel).tunnel("x", &[]).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
        // The user's own file may contain all of it.
        assert!(of_user(&tunnel).tunnel("x", &[]).is_ok(), "{text}: {:?}", of_user(&tunnel).tunnel("x", &[]));
    }
    let files = Files::new("", "include = [\"../user/secret.toml\", \"link.toml\"]\n");
    files.write("user/secret.toml", "secret\n");
    std::os::unix::fs::symlink("../user/secret.toml", files.folder.path().join("project/link.toml")).unwrap();
    let error = files.load().unwrap_err();
    assert_eq!(error.matches("can include only files in its own folder").count(), 2, "{error}");
    assert!(!error.contains("1 | secret"), "{error}");
}

#[test]
fn a_projects_file_that_others_can_change_is_refused() {
    let files = Files::new("", "include = [\"more/more.toml\"]\n");
    files.write("project/more/more.toml", "[tunnels.x]\ntarget = \"i-1\"\nremote = 80\n");
    let mode = |path: &str, mode| {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(files.folder.path().join(path), permissions).unwrap();
    };
    let file = format!("project/{PROJECT_FILE}");
    for (path, open, closed) in [
        (file.as_str(), 0o646, 0o644),
        ("project", 0o757, 0o755),
        ("project/more/more.toml", 0o666, 0o600),
        ("project/more", 0o777, 0o1777),
    ] {
        mode(path, open);
        let error = files.load().unwrap_err();
        assert!(error.contains("has permission to write there"), "{path}: {error}");
        mode(path, closed);
        files.load().unwrap();
    }
    // The permissions of a symbolic link have no effect.
    let path = files.folder.path().join(&file);
    fs::rename(&path, path.with_extension("real")).unwrap();
    std::os::unix::fs::symlink(path.with_extension("real"), &path).unwrap();
    files.load().unwrap();
    mode("project", 0o1777);
    files.load().unwrap();
}

#[test]
fn a_project_inside_of_the_users_file_is_the_same_file() {
    let files = of_user(DB);
    let path = files.folder.path().join("project").join(PROJECT_FILE);
    files.write(&format!("project/{PROJECT_FILE}"), "[tunnels.x]\ntarget = \"i-1\"\nremote = 80\n");
    let config = merge::load(Some(&path), None, Some(path.parent().unwrap())).unwrap();
    assert_eq!(config.names().collect::<Vec<_>>(), ["x"]);
    assert_eq!(config.files, [path]);
}

#[test]
fn an_excerpt_cannot_control_the_terminal() {
    let error = of_user("[tunnels.x]\nremote = \"\u{1b}[31m\u{202e}\" # \u{1b}]0;title\u{7}\nbad = \"\u{9b}\"\n")
        .load()
        .unwrap_err();
    assert!(error.chars().all(|c| c == '\n' || !c.is_control()) && !error.contains('\u{202e}'), "{error:?}");
}

/// The opposite, that what the schema allows is accepted, is tested with real documents in `tests/real/tunnels.py`.
#[test]
fn every_option_of_forward_is_a_key_of_the_schema() {
    let schema = schema::schema();
    let properties =
        schema.pointer("/properties/tunnels/additionalProperties/properties").unwrap().as_object().unwrap();
    let forward = Cli::command().find_subcommand("forward").unwrap().clone();
    let options: Vec<_> = forward.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)).collect();
    for option in &options {
        let of_command = ["local", "config", "refresh", "hosts", "output", "metrics"].contains(&&**option);
        let key = if option == "parameter" { "parameters" } else { option };
        assert_eq!(properties.contains_key(key), !of_command || option == "local", "{option}");
    }
    assert_eq!(properties.len(), KEYS.len());
    for key in KEYS.iter() {
        let about = properties[key.name]["description"].as_str().unwrap();
        assert!(!about.is_empty(), "{}", key.name);
    }
    assert_eq!(KEYS.iter().filter(|key| key.shape == Shape::Pairs).count(), 1);
}

#[test]
fn the_schema_in_the_documentation_is_this_one() {
    let committed = include_str!("../../../docs/config.schema.json");
    let current = format!("{:#}\n", schema::schema());
    assert!(committed == current, "write it again: aws-ssm-forward config schema > docs/config.schema.json");
}

const WORDS: &[&str] = &[
    "[tunnels.a]\n",
    "[tunnels.",
    "[defaults]\n",
    "[[",
    "]\n",
    "include = ",
    "target = ",
    "remote = ",
    "local = ",
    "sessions = ",
    "groups = ",
    "\"i-1\"\n",
    "\"db:5432\"\n",
    "\"${HOME}\"",
    "\"${\"",
    "[",
    ",",
    "1\n",
    "true",
    "=",
    "\n",
    "\"",
    "'",
    "#",
    "\\",
    "a.b = ",
    "{",
    "}",
];

proptest::proptest! {
    #[test]
    fn any_file_is_read_or_its_problems_are_shown(text in crate::random_text::of_words(WORDS), of_user in proptest::prelude::any::<bool>()) {
        parse_any(&text, of_user);
    }
}

#[test]
fn the_corpus_is_read_or_its_problems_are_shown() {
    let seeds: [&[u8]; 6] = [
        b"u[defaults]\nprofile = \"staging\"\nregion = \"eu-central-1\"\n\n[tunnels.a]\nremote = \"rds:orders\"\ngroups = [\"x\"]\n",
        b"u[tunnels.\"a b\"]\ntarget = \"i-1\"\nremote = \"db:5432\"\nlocal = 5432\nsessions = 4\nwait-ready = true\n",
        b"uinclude = [\"team.toml\", \"~/t.toml\"]\n[tunnels.${HOME}]\ntarget = \"${TARGET:-i-1}\"\n",
        b"p[tunnels.web]\ntarget = \"tag:Role=bastion\"\nremote = \"web.internal:80\"\nlocal = 8080\n",
        b"p[tunnels.c]\nprofile = \"x\"\nlocal = \"unix:/run/s\"\nconnect-timeout = \"10s\"\nallow-stream-host = [\"h\"]\n",
        b"u[tunnels.d]\nlocal = 70000\nsessions = \"auto\"\nmessage-rate = 0\nunknown = 1\nloca = 2\n",
    ];
    crate::replay::corpus("config_file", &seeds, 2000, |input| {
        // The first byte selects the author of the file.
        let (of_user, text) = input.split_first().map_or((true, input), |(first, rest)| (*first == b'u', rest));
        parse_any(&String::from_utf8_lossy(text), of_user)
    });
}

/// Parses any text as a file. The result is a file or problems, each with a position in the text and a printable message.
fn parse_any(text: &str, of_user: bool) -> String {
    let author = if of_user { problem::Author::User } else { problem::Author::Project("/project".into()) };
    let source = problem::Source { path: "/project/file.toml".into(), text: text.to_owned(), author };
    let mut problems = Vec::new();
    let file = file::read(std::sync::Arc::new(source), &mut problems);
    for problem in &problems {
        let (_, at) = problem.position();
        assert!(at <= text.len(), "byte {at} of {text:?}");
    }
    assert!(file.tunnels.keys().all(|name| text.contains(name.as_str()) || text.contains('\\')));
    if problems.is_empty() {
        return format!("{} tunnels", if file.tunnels.is_empty() { "no" } else { "some" });
    }
    let failure = failure(&problems);
    assert!(!failure.shown().is_empty());
    failure.message
}
