//! Data keys from KMS.

use std::collections::BTreeMap;

use ssm_forward::{BoxFuture, DataKey, HeaderMap, PlaintextKey, ProviderErrorKind, SessionTicket, Url};
use ssm_proto::{AgentHandshake, AgentKms, ClientHandshake, HandshakeStep, Identity, SessionType};

use super::*;

/// The bytes 0 to 63, in Base64.
pub(crate) const PLAINTEXT: &str =
    "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+Pw==";

pub(crate) fn context() -> BTreeMap<String, String> {
    [("aws:ssm:SessionId".to_owned(), "s-1".to_owned())].into()
}

/// Returns the result of a call as text.
pub(crate) fn shown(key: &DataKey) -> String {
    let fits = if is_accepted(key) { "accepted" } else { "refused" };
    format!("{key:?} {fits} by an agent whose key has the bytes 0 to 63")
}

/// Whether an agent with the expected key accepts this one. The content of a key can only be seen in a handshake.
fn is_accepted(key: &DataKey) -> bool {
    let now = Instant::now();
    let kms = AgentKms {
        key_id: "k".into(),
        challenge: None,
        require_acknowledgement: false,
        proof: [7; 64],
        first_nonce: [0; 12],
    };
    let mut agent = AgentHandshake::new("3.3.0.0", SessionType::StandardStream, Some(kms), Identity::default());
    let mut client = ClientHandshake::new("1.2.0.0", Identity::default(), false);
    let sent = |step: Option<HandshakeStep>| match step {
        Some(HandshakeStep::Send(payload_type, payload)) => (payload_type, payload),
        other => panic!("{other:?}"),
    };
    let (payload_type, payload) = sent(agent.start(now));
    client.handle_payload(payload_type, &payload).1.unwrap();
    let (payload_type, payload) = sent(client.provide_data_key(key, [1; 12]));
    let step = agent.handle_payload(now, payload_type, &payload).unwrap();
    assert!(matches!(step, Some(HandshakeStep::DecryptDataKey(_, ciphertext)) if ciphertext == key.ciphertext));
    let known = PlaintextKey::new(&(0..64).collect::<Vec<u8>>()).unwrap();
    let (payload_type, payload) = sent(agent.provide_plaintext_key(now, &known));
    let (Some(HandshakeStep::Send(payload_type, payload)), Ok(())) = client.handle_payload(payload_type, &payload)
    else {
        return false;
    };
    agent.admits(payload_type, &payload)
}

fn granted() -> String {
    format!(r#"{{"CiphertextBlob":"c2VhbGVk","KeyId":"arn:aws:kms:eu-west-1:1:key/k","Plaintext":"{PLAINTEXT}"}}"#)
}

#[test]
fn a_data_key_is_bound_to_the_context_and_signed_for_kms() {
    let api = Api::answering("200 OK", granted());
    let lines = Surroundings::at(&api.url).with("AWS_SESSION_TOKEN", "t0ken").run("key");
    assert!(lines[0].starts_with("OK") && lines[0].contains("accepted"), "{lines:?}");
    let [request] = &api.requests()[..] else { panic!("{:?}", api.requests()) };
    for part in [
        "POST / HTTP/1.1",
        "x-amz-target: TrentService.GenerateDataKey\r\n",
        "content-type: application/x-amz-json-1.1\r\n",
        "x-amz-security-token: t0ken\r\n",
        "/eu-west-1/kms/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target, ",
        r#"{"KeyId":"alias/k","NumberOfBytes":64,"EncryptionContext":{"aws:ssm:SessionId":"s-1"}}"#,
    ] {
        assert!(request.contains(part), "{part} is not in {request}");
    }
}

#[test]
fn not_even_the_most_verbose_log_holds_the_key() {
    let api = Api::answering("200 OK", granted());
    let output =
        Surroundings::at(&api.url).with("AWS_SESSION_TOKEN", "made-up too").with("TEST_TRACE", "1").output("key");
    assert!(output.contains("TRACE") && output.contains("GenerateDataKey") && output.contains("accepted"), "{output}");
    let wrong = Api::answering("200 OK", format!("{:?}", PLAINTEXT));
    Surroundings::at(&wrong.url).with("TEST_TRACE", "1").assert_error("key", &["Service", "malformed", "line 1"]);
}

#[test]
fn each_refusal_of_kms_says_what_to_do() {
    for (status, code, text, parts) in [
        ("400 Bad Request", "AccessDeniedException", "No.", &["AccessDenied", "permission kms:GenerateDataKey"][..]),
        ("400 Bad Request", "com.amazonaws.kms#NotFoundException", "Alias is not found.", &["Invalid", "KMS key"]),
        ("400 Bad Request", "DisabledException", "key/k is disabled.", &["Invalid", "is disabled", "enabled"]),
        ("400 Bad Request", "KMSInvalidStateException", "pending deletion", &["Invalid", "pending deletion"]),
        ("400 Bad Request", "ExpiredTokenException", "expired", &["ExpiredCredentials", "set new AWS_ACCESS_KEY_ID"]),
        ("400 Bad Request", "UnrecognizedClientException", "invalid", &["Credentials", "clock"]),
        (
            "400 Bad Request",
            "ThrottlingException",
            "Rate\nexceeded",
            &["Throttled", "Rate exceeded", "try again later"],
        ),
        ("500 Internal Server Error", "KMSInternalException", "oops", &["Service", "oops", "try again later"]),
    ] {
        let api = Api::answering(status, format!(r#"{{"__type":"{code}","message":{text:?}}}"#));
        let code = code.rsplit('#').next().unwrap();
        Surroundings::at(&api.url).assert_error("key", &[parts, &["GenerateDataKey: ", code]].concat());
    }
}

#[test]
fn an_answer_without_a_key_is_none() {
    for (status, body, parts) in [
        ("200 OK", "{}".to_owned(), &["without a Plaintext of 64 bytes"][..]),
        ("200 OK", granted().replace("AAEC", ""), &["without a Plaintext of 64 bytes"]),
        ("200 OK", granted().replace("AAEC", "????"), &["without a Plaintext of 64 bytes"]),
        ("200 OK", granted().replace("c2VhbGVk", ""), &["without CiphertextBlob"]),
        ("200 OK", "<html>captive portal</html>".into(), &["malformed", "line 1 column 1"]),
        ("404 Not Found", "<html>nothing here</html>".into(), &["HTTP 404", "form of the KMS API"]),
        ("503 Service Unavailable", "<html>busy</html>".into(), &["HTTP 503", "try again later"]),
    ] {
        let api = Api::answering(status, body);
        Surroundings::at(&api.url).assert_error("key", &[&["Service", &api.url, "GenerateDataKey"], parts].concat());
    }
}

#[test]
fn a_busy_service_is_asked_again() {
    let api = Api::answering("400 Bad Request", r#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#);
    Surroundings::at(&api.url).assert_error("key", &["Throttled"]);
    assert_eq!(api.requests().len(), 3);
}

#[test]
fn an_expired_token_is_replaced_once() {
    let expired = r#"{"__type":"ExpiredTokenException","message":"expired"}"#;
    let keys = |key: &str| format!(r#"{{"Version":1,"AccessKeyId":"{key}","SecretAccessKey":"made-up"}}"#);
    let api = Api::answering_each(vec![
        ("AmazonSSM.StartSession", "200 OK", GRANTED.into()),
        ("Credential=AKIDOLD/", "400 Bad Request", expired.into()),
        ("Credential=AKIDNEW/", "200 OK", granted()),
    ]);
    let surroundings = Surroundings::new(&[("AWS_REGION", "eu-west-1"), ("AWS_ENDPOINT_URL", &api.url)])
        .file("credentials", &keys("AKIDOLD"))
        .file("rotated", &keys("AKIDNEW"))
        .file("config", "[default]\ncredential_process = sh -c 'cat \"$HOME/.aws/credentials\"'\n")
        .with("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent");
    // The first call stores the old credentials in the cache.
    let lines = surroundings.run("start,rotate,key");
    assert!(lines[2].starts_with("OK") && api.requests().len() == 3, "{lines:?}");
}

#[test]
fn kms_is_asked_where_it_is() {
    let api = Api::answering("200 OK", granted());
    let nowhere = || Surroundings::at("http://127.0.0.1:1");
    for surroundings in [
        nowhere().with("AWS_ENDPOINT_URL_KMS", &api.url),
        nowhere().with("AWS_ENDPOINT_URL_KMS", &api.url).with("TEST_URL", "http://127.0.0.1:1"),
        nowhere().with("TEST_URL", &api.url),
        Surroundings::at(&api.url).with("TEST_URL", "https://ssm.example"),
        Surroundings::at(&api.url).with("HTTP_PROXY", "http://127.0.0.1:1"),
    ] {
        assert!(surroundings.run("key")[0].starts_with("OK"));
    }
    nowhere().assert_error("key", &["Unreachable", "http://127.0.0.1:1", "GenerateDataKey", "refused"]);
    let malformed = nowhere().with("AWS_ENDPOINT_URL_KMS", "ftp://x");
    malformed.assert_error("key", &["Invalid", "endpoint \"ftp://x\" of kms", "http://"]);
    let proxy = Api::answering("200 OK", granted());
    let outside = Surroundings::at("http://aws.example").with("HTTP_PROXY", &proxy.url);
    assert!(outside.run("key")[0].starts_with("OK"));
    assert!(proxy.requests()[0].starts_with("POST http://aws.example/"), "{:?}", proxy.requests());
}

#[tokio::test]
async fn a_ticket_asks_its_api_or_says_what_is_missing() {
    let ticket = || SessionTicket {
        session_id: "s-1".into(),
        stream_url: "wss://x/".into(),
        token: "t0ken".into(),
        target: None,
    };
    let error = TicketProvider::new(ticket(), None).data_key("k", &context()).await.unwrap_err();
    assert!(error.message.contains("AWS credentials") && error.message.contains("preferences"), "{error}");
    let error = TicketProvider::new(ticket(), Some(Arc::new(NoKeys))).data_key("k", &context()).await.unwrap_err();
    assert_eq!(error.kind, ProviderErrorKind::Invalid);
    assert!(error.message.contains("not supported by this provider"), "{error}");
}

/// A provider that does not support encryption.
struct NoKeys;

impl SessionProvider for NoKeys {
    fn start<'a>(&'a self, _: &'a StartRequest) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
        unreachable!()
    }

    fn resume<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
        unreachable!()
    }

    fn terminate<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), ProviderError>> {
        unreachable!()
    }

    fn sign_upgrade<'a>(&'a self, _: &'a Url) -> BoxFuture<'a, Result<HeaderMap, ProviderError>> {
        unreachable!()
    }
}
