//! Computes the contents of files like `/etc/hosts` and `/etc/nsswitch.conf`.

use std::fmt::Write as _;

use super::Name;

/// Returns the contents of a hosts file that maps these names to these addresses and contains no other entries for them. All other
/// entries are those of `original`.
pub(crate) fn with_names(original: &str, names: &[Name]) -> String {
    let mut text = String::new();
    for Name { address, name } in names {
        let _ = writeln!(text, "{address} {name}");
    }
    for line in original.lines() {
        text.push_str(&without(line, names));
        text.push('\n');
    }
    text
}

/// Returns a line of a hosts file without these names; empty if no name is left.
fn without(line: &str, names: &[Name]) -> String {
    let (entry, _) = line.split_once('#').unwrap_or((line, ""));
    let is_ours = |word: &str| names.iter().any(|name| name.name.eq_ignore_ascii_case(word.trim_end_matches('.')));
    let mut words = entry.split_whitespace();
    if !words.clone().skip(1).any(is_ours) {
        return line.to_owned();
    }
    let address = words.next().unwrap_or_default();
    let left: Vec<_> = words.filter(|word| !is_ours(word)).collect();
    if left.is_empty() { String::new() } else { format!("{address} {}", left.join(" ")) }
}

/// Returns a configuration of the name service switch that asks the hosts file first. Any other source would answer from its own
/// cache, or from the hosts file that other programs see. `None` if `original` need not be changed.
pub(crate) fn files_first(original: &str) -> Option<String> {
    let mut changed = None;
    let lines = original.lines().map(|line| {
        let (entry, _) = line.split_once('#').unwrap_or((line, ""));
        let Some(sources) = entry.trim_start().strip_prefix("hosts:") else { return line.to_owned() };
        if sources.split_whitespace().next() == Some("files") {
            return line.to_owned();
        }
        changed = Some(());
        let others: Vec<_> = sources.split_whitespace().filter(|source| *source != "files").collect();
        format!("hosts: files {}", others.join(" "))
    });
    let text: String = lines.fold(String::new(), |text, line| text + &line + "\n");
    changed.map(|()| text)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn name(text: &str) -> Name {
        Name { address: Ipv4Addr::new(127, 64, 0, 1), name: text.into() }
    }

    #[test]
    fn a_name_leads_to_its_tunnel_only() {
        let original =
            "127.0.0.1 localhost\n# 10.0.0.1 db.example\n10.0.0.1 db.example db\n10.0.0.2 DB.example. # old\n::1 ip6";
        assert_eq!(
            with_names(original, &[name("db.example")]),
            "127.64.0.1 db.example\n127.0.0.1 localhost\n# 10.0.0.1 db.example\n10.0.0.1 db\n\n::1 ip6\n"
        );
    }

    #[test]
    fn the_file_is_asked_first() {
        assert_eq!(files_first("passwd: files\nhosts: files dns\n"), None);
        assert_eq!(files_first("passwd: files\n"), None);
        assert_eq!(
            files_first(
                "hosts:  mymachines resolve [!UNAVAIL=return] files myhostname dns # as on Arch\npasswd: files\n"
            )
            .as_deref(),
            Some("hosts: files mymachines resolve [!UNAVAIL=return] myhostname dns\npasswd: files\n")
        );
    }
}
