//! Parameters that are offered to a document, which may not define them.

use ssm_forward::StartRequest;

use super::{Api, GRANTED, Surroundings};

const DENIED: &str = r#"{"__type":"AccessDeniedException","message":"No."}"#;

/// Adds an offered host and port to the request.
pub(super) fn offering(request: &StartRequest) -> StartRequest {
    let parameters = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), vec![(*value).to_owned()])).collect()
    };
    StartRequest {
        document: Some("Own".into()),
        parameters: parameters(&[("given", "1")]),
        offered: parameters(&[("given", "2"), ("host", "db"), ("portNumber", "3306")]),
        ..request.clone()
    }
}

/// Returns the parameters of each call of StartSession.
fn parameters(api: &Api) -> Vec<serde_json::Value> {
    let started = api.requests().into_iter().filter(|request| request.contains("StartSession"));
    started
        .map(|request| {
            let body: serde_json::Value = serde_json::from_str(request.rsplit_once("\n").unwrap().1).unwrap();
            assert_eq!(body["DocumentName"], "Own");
            body["Parameters"].clone()
        })
        .collect()
}

#[test]
fn a_document_gets_what_it_defines_of_what_is_offered() {
    for (defined, sent) in [
        ("", serde_json::json!({ "given": ["1"] })),
        (r#"{"Name":"portNumber"}"#, serde_json::json!({ "given": ["1"], "portNumber": ["3306"] })),
        (
            r#"{"Name":"host"},{"Name":"portNumber"},{"Name":"given"}"#,
            serde_json::json!({ "given": ["1"], "host": ["db"], "portNumber": ["3306"] }),
        ),
    ] {
        let described = format!(r#"{{"Document":{{"Name":"Own","Parameters":[{defined}]}}}}"#);
        let answers = vec![("DescribeDocument", "200 OK", described), ("StartSession", "200 OK", GRANTED.into())];
        let api = Api::answering_each(answers);
        assert!(Surroundings::at(&api.url).run("offer")[0].starts_with("OK"));
        assert_eq!(parameters(&api), [sent]);
    }
}

#[test]
fn where_the_document_cannot_be_looked_at_it_is_offered_all_then_nothing() {
    let refusal = |name: &str| format!(r#"{{"__type":"InvalidParameters","message":"{name} is not right"}}"#);
    let denied = ("DescribeDocument", "403 Forbidden", DENIED.to_owned());
    let refused = ("portNumber", "400 Bad Request", refusal("portNumber"));
    let api = Api::answering_each(vec![denied.clone(), refused.clone(), ("StartSession", "200 OK", GRANTED.into())]);
    assert!(Surroundings::at(&api.url).run("offer")[0].starts_with("OK"));
    let all = serde_json::json!({ "given": ["1"], "host": ["db"], "portNumber": ["3306"] });
    let none = serde_json::json!({ "given": ["1"] });
    assert_eq!(parameters(&api), [all.clone(), none]);
    // Both errors are reported, because it is not known which of the two attempts was the right one.
    let answers = vec![denied.clone(), refused, ("StartSession", "400 Bad Request", refusal("given"))];
    let api = Api::answering_each(answers);
    Surroundings::at(&api.url).assert_error("offer", &["Invalid", "portNumber is not", "given is not"]);
    // Errors that have nothing to do with parameters are not retried.
    let offline = r#"{"__type":"TargetNotConnected","message":"i-0 is not connected"}"#;
    let api = Api::answering_each(vec![denied, ("StartSession", "400 Bad Request", offline.into())]);
    Surroundings::at(&api.url).assert_error("offer", &["NotConnected"]);
    assert_eq!(parameters(&api), [all]);
}

#[test]
fn a_document_that_is_not_there_is_told_as_such() {
    let missing = r#"{"__type":"InvalidDocument","message":"no document Own"}"#;
    let api = Api::answering("400 Bad Request", missing);
    Surroundings::at(&api.url).assert_error("offer", &["Invalid", "StartSession: InvalidDocument", "no document Own"]);
}
