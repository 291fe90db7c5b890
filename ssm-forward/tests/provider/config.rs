//! Files and variables are read as the AWS CLI reads them. Errors name the place.

use std::io;
use std::sync::Arc;

use ssm_forward::Person;

use super::{Api, GRANTED, KEYS, Surroundings};

const URL: &str = "wss://ssmmessages.eu-west-1.amazonaws.com/v1/data-channel/s-1?role=publish_subscribe";
const UNSIGNED: &str = "OK signed with ";
const ROLE: &str = "role_arn = arn:aws:iam::123456789012:role/admin\nsource_profile = base\n\
                    [profile base]\naws_access_key_id = AKIDBASE\naws_secret_access_key = made-up\n";

/// Returns the user of the process that makes the calls, as described by `TEST_CODE` and `TEST_TOLD`.
pub(super) fn person() -> Option<Arc<dyn Person>> {
    let variable = |name| std::env::var(name).ok();
    Some(Arc::new(Scripted { code: variable("TEST_CODE"), told: variable("TEST_TOLD") }))
}

#[derive(Debug)]
struct Scripted {
    code: Option<String>,
    /// A file into which messages to the user are written.
    told: Option<String>,
}

impl Person for Scripted {
    fn can_answer(&self) -> bool {
        self.code.is_some()
    }

    fn ask(&self, question: &str) -> io::Result<String> {
        assert!(question.contains("arn:aws:iam::123456789012:mfa/me"), "{question}");
        Ok(format!("{}\n", self.code.as_deref().unwrap()))
    }

    fn tell(&self, text: &str) {
        match &self.told {
            Some(path) => std::fs::write(path, format!("{text}\n")).unwrap(),
            None => println!("\n> told {text}"),
        }
    }
}

fn in_files(api: &Api, config: &str) -> Surroundings {
    Surroundings::new(&[("AWS_ENDPOINT_URL", &api.url), ("AWS_REGION", "eu-west-1")]).file("config", config)
}

#[track_caller]
fn assert_signed_with(api: &Api, surroundings: &Surroundings, key: &str, region: &str) {
    let lines = surroundings.run("start");
    assert!(lines[0].starts_with("OK"), "{lines:?}");
    let request = api.requests().pop().unwrap();
    assert!(
        request.contains(&format!("Credential={key}/")) && request.contains(&format!("/{region}/ssm/")),
        "{request}"
    );
}

#[test]
fn profiles_are_read_as_the_aws_cli_reads_them() {
    let keys = "aws_access_key_id = AKIDFILE\naws_secret_access_key = made-up\n";
    let api = Api::answering("200 OK", GRANTED);
    for (name, config) in [
        ("dev", format!("[profile dev]\n    region = eu-west-3\n{}", keys.replace("aws_", "\taws_"))),
        ("my dev", format!("[profile \"my dev\"]\nregion = eu-west-3\n{keys}")),
        ("dev", format!("[profile dev]\nregion: eu-west-3\n{}", keys.replace(" = ", ": "))),
        ("dev#1", format!("[profile dev#1]\nregion = eu-west-3\n{keys}")),
        ("a,b", format!("[profile a,b] # mine\nregion = eu-west-3 # Paris\n{keys}")),
        ("[x]", format!("[profile [x]]\nregion = eu-west-3\n{keys}")),
        ("Übung", format!("[profile Übung]\nREGION=eu-west-3\r\n{keys}")),
        ("dev", format!("[profile dev]\nregion = eu-west-3\ns3 =\n  max_concurrent_requests = 20\n{keys}")),
        ("dev", format!("[plugins]\ncli_legacy_plugin_path = /x\n[profile dev]\nregion = eu-west-3\n{keys}")),
        ("default", format!("[DEFAULT]\nregion = eu-west-3\n[default]\n{keys}")),
    ] {
        let surroundings = Surroundings::new(&[("AWS_ENDPOINT_URL", &api.url), ("TEST_PROFILE", name)]);
        assert_signed_with(&api, &surroundings.file("config", &config), "AKIDFILE", "eu-west-3");
    }
}

#[test]
fn a_key_that_no_header_can_carry_is_refused_in_words() {
    let api = Api::answering("200 OK", GRANTED);
    let two_lines = "[default]\naws_access_key_id = AKID\n  more\naws_secret_access_key = made-up\n";
    in_files(&api, two_lines).assert_error("start", &["Credentials", "the access key id", "\"default\""]);
}

#[test]
fn a_file_may_be_elsewhere_and_a_profile_may_be_in_two() {
    let api = Api::answering("200 OK", GRANTED);
    let config = "[profile dev]\nregion = eu-west-3\ncredential_process = false\n";
    let keys = "[dev]\naws_access_key_id = AKIDFILE\naws_secret_access_key = made-up\n";
    let surroundings = Surroundings::new(&[("AWS_ENDPOINT_URL", &api.url)])
        .file("other/config", config)
        .file("other/keys", keys)
        .with("AWS_CONFIG_FILE", "~/.aws/other/config")
        .with("AWS_SHARED_CREDENTIALS_FILE", "$HOME/.aws/other/keys")
        .with("AWS_DEFAULT_PROFILE", "dev");
    assert_signed_with(&api, &surroundings, "AKIDFILE", "eu-west-3");
}

#[test]
fn empty_variables_are_not_set() {
    let api = Api::answering("200 OK", GRANTED);
    let config = format!(
        "[default]\nregion = eu-west-3\nservices = x\naws_access_key_id = AKIDFILE\naws_secret_access_key = made-up\n\
         [services x]\nssm =\n  endpoint_url = {}\n",
        api.url
    );
    let mut surroundings = Surroundings::new(&[]).file("config", &config);
    for name in [
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_PROFILE",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_SSM",
        "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_CA_BUNDLE",
        "AWS_USE_FIPS_ENDPOINT",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "TEST_PROFILE",
        "TEST_REGION",
    ] {
        surroundings = surroundings.with(name, "");
    }
    assert_signed_with(&api, &surroundings, "AKIDFILE", "eu-west-3");
}

#[test]
fn an_endpoint_that_is_given_rules_over_fips() {
    let api = Api::answering("200 OK", GRANTED);
    for (name, value) in
        [("TEST_URL", api.url.as_str()), ("AWS_ENDPOINT_URL", &api.url), ("AWS_ENDPOINT_URL_SSM", &api.url)]
    {
        let surroundings = Surroundings::new(&KEYS).with("AWS_REGION", "us-east-1").with(name, value);
        let surroundings =
            surroundings.with("AWS_USE_FIPS_ENDPOINT", "true").with("AWS_USE_DUALSTACK_ENDPOINT", "true");
        let lines = surroundings.run("start,resume,terminate");
        assert!(lines.len() == 3 && lines.iter().all(|line| line.starts_with("OK")), "{lines:?}");
    }
}

#[test]
fn a_default_profile_that_is_not_there_is_no_profile() {
    let api = Api::answering("200 OK", GRANTED);
    let nothing = Surroundings::at(&api.url).with("TEST_PROFILE", "default");
    assert_signed_with(&api, &nothing, "AKIDEXAMPLE", "eu-west-1");
    let region_only = nothing.file("config", "[default]\nregion = eu-west-3\n");
    assert_signed_with(&api, &region_only, "AKIDEXAMPLE", "eu-west-1");
}

#[test]
fn what_can_not_be_resolved_is_told_once_and_not_signed() {
    let api = Api::answering("200 OK", GRANTED);
    for (config, part) in [
        ("[profile other]\n", "there is no AWS profile \"dev\""),
        (
            "[profile dev]\nlogin_session = arn:aws:iam::123456789012:user/x\n",
            "aws configure export-credentials --profile dev",
        ),
        (
            "[profile dev]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = lost\n",
            "\"lost\" (source_profile), which does not",
        ),
        ("[profile dev]\nnonsense\n", "line 2"),
    ] {
        let surroundings = in_files(&api, config).with("TEST_PROFILE", "dev");
        let lines = surroundings.run(&format!("{URL},{URL}"));
        let [told, first, second] = &lines[..] else { panic!("{lines:?}") };
        assert!(told.starts_with("told warning: ") && told.contains(part), "{told}");
        assert!(told.contains(".aws/config") || config.contains("login_session"), "{told}");
        assert_eq!([first.as_str(), second], [UNSIGNED, UNSIGNED]);
        surroundings.assert_error("start", &["Credentials", part]);
    }
    assert!(api.requests().is_empty());
}

#[test]
fn a_process_is_asked_once_and_its_answer_kept() {
    let api = Api::answering("200 OK", GRANTED);
    let process = "[default]\ncredential_process = sh -c 'echo asked >> \"$HOME/asked\"; \
                   echo \"{\\\"Version\\\":1,\\\"AccessKeyId\\\":\\\"AKIDPROCESS\\\",\\\"SecretAccessKey\\\":\\\"made-up\\\"}\"'\n";
    let surroundings = in_files(&api, process);
    let asked = || std::fs::read_to_string(surroundings.home.path().join("asked")).unwrap_or_default().lines().count();
    assert_eq!((surroundings.run(URL), asked()), (vec![UNSIGNED.to_owned()], 0), "the first dial needs no signature");
    let lines = surroundings.run(&format!("start,{URL},resume,terminate"));
    assert!(lines.len() == 4 && lines[1].contains("authorization"), "{lines:?}");
    assert_eq!(asked(), 1);
    assert!(api.requests().iter().all(|request| request.contains("Credential=AKIDPROCESS/")));
}

/// The process continues only after the user has been told.
#[test]
fn a_slow_process_says_what_is_waited_for() {
    let api = Api::answering("200 OK", GRANTED);
    let process = "[profile slow]\ncredential_process = sh -c 'grep -q slow \"$HOME/told\" && \
                   echo \"{\\\"Version\\\":1,\\\"AccessKeyId\\\":\\\"AKIDPROCESS\\\",\\\"SecretAccessKey\\\":\\\"made-up\\\"}\"'\n";
    let surroundings = in_files(&api, process).with("TEST_PROFILE", "slow");
    let told = surroundings.home.path().join("told");
    assert!(std::process::Command::new("mkfifo").arg(&told).status().unwrap().success());
    let surroundings = surroundings.with("TEST_TOLD", told.to_str().unwrap());
    assert_signed_with(&api, &surroundings, "AKIDPROCESS", "eu-west-1");
}

#[test]
fn a_process_that_fails_is_named_with_its_words() {
    let api = Api::answering("200 OK", GRANTED);
    let failing = in_files(&api, "[profile dev]\ncredential_process = sh -c 'echo no key >&2; exit 3'\n");
    failing.with("TEST_PROFILE", "dev").assert_error("start", &["Credentials", "\"dev\"", ".aws/config", "no key"]);
    let open = in_files(&api, "[default]\ncredential_process = tool 'x\n");
    open.assert_error("start", &["Credentials", "credential_process", "quote"]);
    // Other tools pass the command to a shell, which expands variables.
    let shell = in_files(&api, "[default]\ncredential_process = $HOME/tool\n");
    let tool = shell.home.path().join("tool");
    let text = r#"#!/bin/sh
        echo '{"Version":1,"AccessKeyId":"AKIDPROCESS","SecretAccessKey":"made-up"}'"#;
    std::fs::write(&tool, text).unwrap();
    std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    assert_signed_with(&api, &shell, "AKIDPROCESS", "eu-west-1");
}

fn assumed() -> Api {
    let answer = "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><Credentials>\
                  <AccessKeyId>ASIAROLE</AccessKeyId><SecretAccessKey>made-up</SecretAccessKey>\
                  <SessionToken>session</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>\
                  </Credentials></AssumeRoleResult></AssumeRoleResponse>";
    Api::answering_each(vec![("AmazonSSM", "200 OK", GRANTED.to_owned()), ("", "200 OK", answer.to_owned())])
}

#[test]
fn the_code_of_an_mfa_device_is_asked_for_once() {
    let api = assumed();
    let mfa = "mfa_serial = arn:aws:iam::123456789012:mfa/me\nduration_seconds = 7200\nexternal_id = x\n";
    let surroundings = in_files(&api, &format!("[profile admin]\n{mfa}{ROLE}")).with("TEST_PROFILE", "admin");
    let with_code =
        Surroundings { home: surroundings.home, variables: surroundings.variables }.with("TEST_CODE", "123456");
    let lines = with_code.run("start,resume,terminate");
    assert_eq!(lines.len(), 3, "{lines:?}");
    let (sts, ssm): (Vec<String>, Vec<String>) =
        api.requests().into_iter().partition(|request| request.contains("AssumeRole"));
    let [assume] = &sts[..] else { panic!("{sts:?}") };
    for part in ["Credential=AKIDBASE/", "TokenCode=123456", "DurationSeconds=7200", "ExternalId=x", "mfa%2Fme"] {
        assert!(assume.contains(part), "{part} is not in {assume}");
    }
    assert!(ssm.len() == 3 && ssm.iter().all(|request| request.contains("Credential=ASIAROLE/")), "{ssm:?}");
}

#[test]
fn without_a_terminal_the_key_of_the_profile_is_named() {
    let api = assumed();
    let config = format!("[profile admin]\nmfa_serial = arn:aws:iam::123456789012:mfa/me\n{ROLE}");
    let surroundings = in_files(&api, &config).with("TEST_PROFILE", "admin");
    surroundings.assert_error(
        "start",
        &["Credentials", "\"admin\"", "mfa_serial = arn:aws:iam::123456789012:mfa/me", "--profile admin", "terminal"],
    );
    assert_eq!(surroundings.run(URL), [UNSIGNED], "neither a question nor a wait nor a message");
    assert!(api.requests().is_empty());
}

#[test]
fn the_aws_cli_s_cache_of_roles_is_read() {
    let api = assumed();
    let config = format!("[profile admin]\nmfa_serial = arn:aws:iam::123456789012:mfa/me\n{ROLE}");
    let cached = |expiration: &str| {
        format!(
            r#"{{"Credentials":{{"AccessKeyId":"ASIACACHED","SecretAccessKey":"made-up","SessionToken":"t",
            "Expiration":"{expiration}"}},"AssumedRoleUser":{{"Arn":"x"}}}}"#
        )
    };
    // The name is the SHA-1 of the call's arguments, as botocore computes it.
    let name = "cli/cache/b26e45a5efba11b34b676c5657f44efc9db2add0.json";
    let surroundings = in_files(&api, &config).with("TEST_PROFILE", "admin");
    let good = surroundings.file(name, &cached("2099-01-01T00:00:00+00:00"));
    assert_signed_with(&api, &good, "ASIACACHED", "eu-west-1");
    let old = good.file(name, &cached("2020-01-01T00:00:00UTC"));
    old.assert_error("start", &["mfa_serial"]);
    assert_eq!(api.requests().len(), 1, "STS was not called");
}

#[test]
fn a_role_s_chain_is_followed_or_said_to_be_broken() {
    let api = assumed();
    let role = |text: &str| in_files(&api, &format!("[profile a]\nrole_arn = arn:x\n{text}")).with("TEST_PROFILE", "a");
    role("source_profile = a").assert_error("start", &["\"a\"", "refers to itself"]);
    role("source_profile = b\n[profile b]\nrole_arn = arn:y\nsource_profile = a")
        .assert_error("start", &["refers to itself"]);
    role("source_profile = b\n[profile b]\nregion = x").assert_error("start", &["\"b\"", "no credentials"]);
    role("credential_source = Moon").assert_error("start", &["Moon", "EcsContainer"]);
    role("credential_source = Environment").assert_error("start", &["AWS_ACCESS_KEY_ID"]);
    role("").assert_error("start", &["source_profile", "credential_source"]);
    let own = "source_profile = a\naws_access_key_id = AKIDOWN\naws_secret_access_key = made-up\n";
    assert_signed_with(&api, &role(own), "ASIAROLE", "eu-west-1");
    let environment = role("credential_source = Environment").with(KEYS[0].0, KEYS[0].1).with(KEYS[1].0, KEYS[1].1);
    assert_signed_with(&api, &environment, "ASIAROLE", "eu-west-1");
}

#[test]
fn roots_to_trust_may_be_named_by_the_profile() {
    let config = "[default]\nca_bundle = /nonexistent/roots.pem\n";
    let surroundings = Surroundings::at("http://127.0.0.1:1").file("config", config);
    surroundings
        .assert_error("start", &["Configuration", "ca_bundle of the profile \"default\"", "/nonexistent/roots.pem"]);
}
