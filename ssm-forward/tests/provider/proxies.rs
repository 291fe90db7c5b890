//! Calls of the API through proxies, and limits of their answers.

use super::*;

#[test]
fn a_proxy_that_fails_is_named_with_its_variable() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (variable, url) in [("https_proxy", "http"), ("HTTPS_PROXY", "https"), ("ALL_PROXY", "socks5")] {
        let surroundings = Surroundings::new(&KEYS).with("AWS_REGION", "eu-west-1");
        let surroundings = surroundings.with(variable, &format!("{url}://user:made-up@{closed}"));
        surroundings.assert_error("start", &["Unreachable", &format!("the proxy {closed} ({variable})"), "refused"]);
    }
    let unknown = Surroundings::new(&KEYS).with("AWS_REGION", "eu-west-1").with("HTTPS_PROXY", "gopher://x");
    unknown.assert_error("start", &["Configuration", "HTTPS_PROXY", "gopher"]);
}

#[test]
fn variables_in_lower_case_go_first_and_exceptions_count() {
    let proxy = Api::answering("200 OK", GRANTED);
    let surroundings = || Surroundings::at("http://ssm.example:8080").with("HTTP_PROXY", "http://127.0.0.1:1");
    let lower = surroundings().with("http_proxy", &proxy.url);
    assert!(lower.run("start")[0].starts_with("OK"));
    assert!(proxy.requests()[0].starts_with("POST http://ssm.example:8080/"), "{:?}", proxy.requests());
    let except = surroundings().with("no_proxy", ".example:8080");
    let error = except.error("start");
    assert!(!error.contains("proxy"), "{error}");
    let login = surroundings().with("http_proxy", &proxy.url.replace("http://", "http://user:pa%20ss@"));
    assert!(login.run("start")[0].starts_with("OK"));
    let request = proxy.requests().pop().unwrap().to_ascii_lowercase();
    assert!(request.contains("proxy-authorization: basic dxnlcjpwysbzcw=="), "{request}");
}

#[test]
fn the_head_of_an_answer_has_an_end() {
    for (lines, length, good) in [(1, 20_000, true), (1, 500_000, false), (90, 10, true), (200, 10, false)] {
        let header = format!("\r\nx: {}", "y".repeat(length));
        let status: &'static str = Box::leak(format!("200 OK{}", header.repeat(lines)).into_boxed_str());
        let answer = &Surroundings::at(&Api::answering(status, GRANTED).url).run("start")[0];
        assert_eq!(answer.starts_with("OK"), good, "{lines} headers of {length} bytes: {answer}");
    }
}

#[test]
fn a_redirect_is_not_followed() {
    let elsewhere = Api::answering("200 OK", GRANTED);
    let status: &'static str = Box::leak(format!("302 Found\r\nlocation: {}/", elsewhere.url).into_boxed_str());
    let error = Surroundings::at(&Api::answering(status, "").url).error("start");
    assert!(error.contains("HTTP 302"), "{error}");
    assert!(elsewhere.requests().is_empty(), "the redirect was followed");
}
