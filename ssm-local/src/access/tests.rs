use std::time::UNIX_EPOCH;

use http::Request;

use super::*;

/// The key of the public test suite of Signature Version 4.
const KEY_ID: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// A request as botocore signs it at 2026-11-28T12:00:00Z.
struct Signed {
    method: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, String)>,
    body: &'static str,
}

const AT: Duration = Duration::from_secs(1_795_867_200);
const BODY: &str = r#"{"Target": "i-0123456789abcdef0"}"#;

fn by_botocore() -> Signed {
    let authorization = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261128/eu-central-1/ssm/aws4_request, \
                         SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target, \
                         Signature=cbfe3bc8b895efff8450bf23422984c8cf8522d207d53d00f714610c097ca540";
    Signed {
        method: "POST",
        path: "/",
        headers: vec![
            ("host", "127.0.0.1:4000".into()),
            ("content-type", "application/x-amz-json-1.1".into()),
            ("user-agent", "not signed".into()),
            ("x-amz-target", "AmazonSSM.StartSession".into()),
            ("x-amz-date", "20261128T120000Z".into()),
            ("x-amz-security-token", "of another account".into()),
            ("authorization", authorization.into()),
        ],
        body: BODY,
    }
}

impl Signed {
    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.into()));
        self
    }

    /// Replaces a part of the Authorization header.
    fn claiming(mut self, old: &str, new: &str) -> Self {
        let (_, value) = self.headers.iter_mut().find(|(name, _)| *name == "authorization").unwrap();
        assert!(value.contains(old), "{value}");
        *value = value.replacen(old, new, 1);
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self
    }

    fn verify_at(&self, access: &Access, service: &str, now: Duration) -> Result<(), &'static str> {
        let mut request = Request::builder().method(self.method).uri(self.path);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        access.verify(&head, self.body.as_bytes(), service, UNIX_EPOCH + now).map_err(|error| error.code)
    }

    fn verify(&self) -> Result<(), &'static str> {
        self.verify_at(&Access::fixed(KEY_ID, SECRET), "ssm", AT)
    }
}

#[test]
fn the_public_test_vector_is_accepted() {
    let vanilla = Signed {
        method: "GET",
        path: "/",
        headers: vec![
            ("host", "example.amazonaws.com".into()),
            ("x-amz-date", "20150830T123600Z".into()),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                 SignedHeaders=host;x-amz-date, \
                 Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
                    .into(),
            ),
        ],
        body: "",
    };
    let then = Duration::from_secs(1_440_938_160);
    assert_eq!(vanilla.verify_at(&Access::fixed(KEY_ID, SECRET), "service", then), Ok(()));
}

#[test]
fn what_was_signed_is_accepted_and_nothing_else() {
    assert_eq!(by_botocore().verify(), Ok(()));
    assert_eq!(by_botocore().with("user-agent", "another").verify(), Ok(()), "the header is not signed");
    let invalid = Err("InvalidSignatureException");
    for (what, request) in [
        ("method", Signed { method: "PUT", ..by_botocore() }),
        ("path", Signed { path: "/faults", ..by_botocore() }),
        ("query", Signed { path: "/?a=b", ..by_botocore() }),
        ("body", Signed { body: "{}", ..by_botocore() }),
        ("host", by_botocore().with("host", "127.0.0.1:4001")),
        ("operation", by_botocore().with("x-amz-target", "AmazonSSM.TerminateSession")),
        ("token", by_botocore().with("x-amz-security-token", "another")),
        ("second", by_botocore().with("x-amz-date", "20261128T120001Z")),
        ("region", by_botocore().claiming("eu-central-1", "us-east-1")),
        ("service", by_botocore().claiming("/ssm/", "/kms/")),
        ("day", by_botocore().claiming("20261128", "20261127")),
        ("short day", by_botocore().claiming("20261128", "2026")),
        ("signature", by_botocore().claiming("Signature=", "Signature=0")),
        (
            "no signature",
            by_botocore().claiming("cbfe3bc8b895efff8450bf23422984c8cf8522d207d53d00f714610c097ca540", ""),
        ),
        ("header more", by_botocore().with("x-amz-more", "not signed")),
        ("operation not signed", by_botocore().claiming(";x-amz-target", "")),
        ("date not signed", by_botocore().claiming(";x-amz-date", "")),
        ("host not signed", by_botocore().claiming(";host", "")),
        ("no header of that name", by_botocore().claiming("host;", "host;x-absent;")),
    ] {
        assert_eq!(request.verify(), invalid, "{what}");
    }
}

#[test]
fn a_signature_holds_for_five_minutes() {
    let at = |now| by_botocore().verify_at(&Access::fixed(KEY_ID, SECRET), "ssm", now);
    let (limit, second) = (Duration::from_secs(300), Duration::from_secs(1));
    assert_eq!((at(AT - limit), at(AT + limit)), (Ok(()), Ok(())));
    assert_eq!(at(AT - limit - second), Err("InvalidSignatureException"));
    assert_eq!(at(AT + limit + second), Err("InvalidSignatureException"));
}

#[test]
fn what_is_no_signature_is_told_apart() {
    let incomplete = Err("IncompleteSignatureException");
    for header in [
        "",
        "made-up",
        "Bearer x",
        "AWS4-HMAC-SHA256",
        "AWS4-HMAC-SHA256 made-up",
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE",
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261128/ssm/aws4_request, SignedHeaders=host, Signature=a",
        "AWS4-ECDSA-P256-SHA256 Credential=AKIDEXAMPLE/20261128/eu-central-1/ssm/aws4_request, SignedHeaders=host, Signature=a",
    ] {
        assert_eq!(by_botocore().with("authorization", header).verify(), incomplete, "{header}");
    }
    for date in ["", "yesterday", "2026-11-28T12:00:00Z", "20261328T120000Z", "20261128T120000"] {
        assert_eq!(by_botocore().with("x-amz-date", date).verify(), incomplete, "{date}");
    }
    assert_eq!(by_botocore().without("x-amz-date").verify(), incomplete);
    assert_eq!(by_botocore().without("host").verify(), Err("InvalidSignatureException"));
    assert_eq!(by_botocore().without("authorization").verify(), Err("MissingAuthenticationTokenException"));
    assert_eq!(by_botocore().claiming("AKIDEXAMPLE", "AKIDOTHER").verify(), Err("UnrecognizedClientException"));
}

#[test]
fn secrets_differ_and_are_not_shown() {
    let (one, other) = (Access::secret(), Access::secret());
    assert_ne!(one.key.secret_access_key(), other.key.secret_access_key());
    assert_ne!(one.key.access_key_id(), other.key.access_key_id());
    assert_eq!((one.key.access_key_id().len(), one.key.secret_access_key().len()), (20, 40));
    assert!(!format!("{one:?}").contains(one.key.secret_access_key()));
    assert_eq!(by_botocore().verify_at(&one, "ssm", AT), Err("UnrecognizedClientException"));
}

#[test]
fn without_checks_any_authorization_will_do_but_there_must_be_one() {
    let open = Access::open();
    assert_eq!(by_botocore().with("authorization", "made-up").verify_at(&open, "kms", Duration::ZERO), Ok(()));
    let unsigned = by_botocore().without("authorization").verify_at(&open, "ssm", AT);
    assert_eq!(unsigned, Err("MissingAuthenticationTokenException"));
}
