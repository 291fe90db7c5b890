//! The demo, with a size that a debug build transfers quickly.

use std::io::{Read, Write};

use crate::common::{Cli, connect, run};

#[test]
fn once_moves_and_verifies_both_ways() {
    let ended = run(&["demo", "--once", "--size", "4MiB"], &[]);
    assert_eq!(ended.code, 0, "{ended:#?}");
    let output = ended.stdout.join("\n");
    assert_eq!(output.matches("SHA-256 verified").count(), 2, "{output}");
    for part in ["download", "upload", "MB/s", "round trip", "p99", "messages"] {
        assert!(output.contains(part), "no {part} in {output}");
    }
    assert!(!output.contains("http://"), "{output}");
}

#[test]
fn it_stays_and_serves_its_page_until_a_signal() {
    let cli = Cli::start(&["demo", "--size", "64KiB"], &[]);
    let address = loop {
        let line = cli.line();
        if let Some(rest) = line.strip_prefix("Open http://") {
            break rest.split('/').next().unwrap().to_owned();
        }
    };
    let page = get(&address, "/");
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("text/html") && page.ends_with("</html>\n"), "{page}");
    assert!(
        !page.contains("src=\"http") && !page.contains("href=\"http"),
        "the page loads something from another server"
    );
    let stats = get(&address, "/stats.json");
    let stats: serde_json::Value = serde_json::from_str(stats.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(stats["local"], address);
    assert!(stats["figures"]["bytes_down"].as_u64() > Some(64 * 1024), "{stats}");
    assert!(stats["session_id"].is_string() && stats["figures"]["messages_received"].as_u64() > Some(0), "{stats}");
    cli.signal("INT");
    assert_eq!(cli.end().code, 0);
}

fn get(address: &str, path: &str) -> String {
    let mut stream = connect(address);
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
