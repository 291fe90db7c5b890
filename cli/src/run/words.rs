//! `{host}`, `{port}` and `{addr}` in the words of a command.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use super::ends::{Address, End};
use crate::exit_code::{ExitCode, Failure};

/// Replaces the placeholders in a word with the addresses of the tunnels. Other braces are not changed. `{{host}}` stands for a
/// literal `{host}`.
///
/// # Errors
/// Returns an error if a placeholder does not name one of several tunnels, if it requires the host or port of a Unix socket, or if
/// there is no login file.
pub(crate) fn fill(word: &OsStr, ends: &[End]) -> Result<OsString, Failure> {
    let mut rest = word.as_bytes();
    let mut filled = Vec::new();
    while let Some(at) = rest.iter().position(|&byte| byte == b'{') {
        let (before, from) = rest.split_at(at);
        filled.extend_from_slice(before);
        let (written, length) = placeholder(from, ends)?;
        filled.extend_from_slice(&written);
        rest = from.get(length..).unwrap_or_default();
    }
    filled.extend_from_slice(rest);
    Ok(OsString::from_vec(filled))
}

/// Reads a placeholder at the beginning of `text`, which starts with a brace. Returns the replacement and the number of bytes of
/// `text` that it replaces.
fn placeholder(text: &[u8], ends: &[End]) -> Result<(Vec<u8>, usize), Failure> {
    let plain = Ok((b"{".to_vec(), 1));
    let is_escaped = text.starts_with(b"{{");
    let open = if is_escaped { 2 } else { 1 };
    let Some(inside) = text.get(open..) else { return plain };
    let Some(length) = inside.iter().position(|&byte| byte == b'}') else { return plain };
    let Some(inside) = inside.get(..length).and_then(|inside| str::from_utf8(inside).ok()) else { return plain };
    let (name, part) = inside.rsplit_once('.').map_or((None, inside), |(name, part)| (Some(name), part));
    let end = ends.iter().find(|end| name.is_some_and(|name| end.name.eq_ignore_ascii_case(name)));
    if !["host", "port", "addr", "login_file"].contains(&part) || (name.is_some() && end.is_none()) {
        return plain;
    }
    if is_escaped {
        let is_closed = text.get(open + length..).is_some_and(|text| text.starts_with(b"}}"));
        return if is_closed { Ok((format!("{{{inside}}}").into_bytes(), open + length + 2)) } else { plain };
    }
    let ((Some(end), _) | (None, [end])) = (end, ends) else { return Err(ambiguous(part, ends)) };
    Ok((value(end, part)?, open + length + 1))
}

fn value(end: &End, part: &str) -> Result<Vec<u8>, Failure> {
    match (part, &end.at, &end.login_file) {
        ("host", Address::Tcp { host, .. }, _) => Ok(host.clone().into_bytes()),
        ("port", Address::Tcp { port, .. }, _) => Ok(port.to_string().into_bytes()),
        ("addr", Address::Tcp { .. }, _) => Ok(end.addr().into_bytes()),
        ("addr", Address::Unix(path), _) => Ok(path.as_os_str().as_bytes().to_vec()),
        ("login_file", _, Some(file)) => Ok(file.as_os_str().as_bytes().to_vec()),
        ("login_file", ..) => Err(usage("{login_file} needs --iam-auth USER".into())),
        _ => Err(usage(format!("{{{part}}}: a Unix socket has no host and no port; write {{addr}} for its path"))),
    }
}

fn ambiguous(part: &str, ends: &[End]) -> Failure {
    let forms: Vec<_> = ends.iter().map(|end| format!("{{{}.{part}}}", end.name)).collect();
    usage(format!("{{{part}}} is ambiguous, because there are {} tunnels; write {}", ends.len(), forms.join(" or ")))
}

fn usage(text: String) -> Failure {
    Failure::new(ExitCode::Usage, "usage", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(name: &str, port: u16) -> End {
        let at = Address::Tcp { host: "127.0.0.1".into(), address: "127.0.0.1".into(), port };
        End { name: name.into(), at, ..End::default() }
    }

    fn filled(word: &str, ends: &[End]) -> Result<String, String> {
        fill(OsStr::new(word), ends).map(|word| word.into_string().unwrap()).map_err(|failure| failure.message)
    }

    #[test]
    fn only_what_is_meant_is_replaced() {
        let one = [end("db", 1)];
        for (word, wanted) in [
            ("http://{addr}/x", "http://127.0.0.1:1/x"),
            ("{host}{port}", "127.0.0.11"),
            ("{db.host}:{DB.port}", "127.0.0.1:1"),
            ("{print $1}", "{print $1}"),
            ("{{host}}", "{host}"),
            ("{{.host}}", "{{.host}}"),
            ("{other.host}", "{other.host}"),
            ("{host", "{host"),
            ("{", "{"),
            ("{{{port}", "{{1"),
            ("{ä}{}", "{ä}{}"),
        ] {
            assert_eq!(filled(word, &one).as_deref(), Ok(wanted), "{word}");
        }
    }

    #[test]
    fn several_tunnels_are_named() {
        let two = [end("db", 1), end("web", 2)];
        assert_eq!(filled("{web.addr} {db.port}", &two).as_deref(), Ok("127.0.0.1:2 1"));
        let error = filled("{port}", &two).unwrap_err();
        assert!(error.contains("{db.port} or {web.port}"), "{error}");
    }

    #[test]
    fn a_socket_has_a_path_and_no_port() {
        let socket = [End { at: Address::Unix("/run/x".into()), ..end("db", 1) }];
        assert_eq!(filled("--socket={addr}", &socket).as_deref(), Ok("--socket=/run/x"));
        assert!(filled("{port}", &socket).unwrap_err().contains("write {addr}"));
        assert!(filled("{login_file}", &socket).unwrap_err().contains("--iam-auth"));
    }
}
