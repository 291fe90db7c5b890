//! `status`, `logs`, `down`, `restart` and `reload`: commands that send requests to a running `up`.

use std::time::Duration;

use bytesize::ByteSize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::control::{Answer, Process, Request};
use super::folder::ControlFolder;
use super::manager::not_open;
use super::status::Status;
use crate::args::{LogsArgs, OpenArgs, OutputFormat, StatusArgs};
use crate::exit_code::{ExitCode, Failure};
use crate::{console, untrusted};

/// Timeout for finding the open tunnels for completion.
const COMPLETION_TIMEOUT: Duration = Duration::from_secs(1);

/// Returns the open tunnels and their local addresses, for completion. Returns an empty list after an error or the timeout.
pub(crate) async fn open_tunnels() -> Vec<(String, Option<String>)> {
    let Ok(folder) = ControlFolder::open() else { return Vec::new() };
    let asked = timeout(COMPLETION_TIMEOUT, Process::all(&folder)).await;
    let processes = asked.ok().and_then(Result::ok).unwrap_or_default();
    let tunnels = processes.into_iter().flat_map(|process| process.status.tunnels);
    tunnels.map(|tunnel| (tunnel.name, tunnel.address)).collect()
}

/// Prints the state of the tunnels.
///
/// # Errors
/// Returns an error if a named tunnel is not open or its process does not answer.
pub(crate) async fn status(args: &StatusArgs) -> Result<ExitCode, Failure> {
    let processes = Process::all(&ControlFolder::open()?).await?;
    check(&args.open.names, &processes)?;
    let is_wanted = |status: &&Status| args.open.names.is_empty() || args.open.names.contains(&status.name);
    let tunnels = processes.iter().flat_map(|process| {
        process.status.tunnels.iter().filter(is_wanted).map(move |status| (process.status.pid, status))
    });
    let tunnels: Vec<_> = tunnels.collect();
    match args.output {
        OutputFormat::Json => {
            let object = |(pid, status): &(u32, &Status)| {
                let mut object = serde_json::to_value(status).unwrap_or_default();
                if let Value::Object(object) = &mut object {
                    object.insert("pid".to_owned(), json!(pid));
                }
                object
            };
            let objects: Vec<_> = tunnels.iter().map(object).collect();
            console::say(format!("{}\n", Value::from(objects)));
        }
        OutputFormat::Text if tunnels.is_empty() => console::note("no tunnels are open; `up` opens them"),
        OutputFormat::Text => {
            let statuses: Vec<_> = tunnels.iter().map(|(_, status)| *status).collect();
            console::say(table(&statuses));
        }
    }
    Ok(ExitCode::Ok)
}

/// Returns the tunnels as a table with one line for each tunnel.
pub(super) fn table(statuses: &[&Status]) -> String {
    let head = ["NAME", "STATE", "ADDRESS", "REMOTE", "CONNECTIONS", "UP", "DOWN", "ROUND TRIP"].map(str::to_owned);
    let row = |status: &&Status| {
        let bytes = |name| ByteSize(status.figure(name)).display().iec().to_string();
        let round_trip = match status.figure("round_trip_us") {
            0 => "-".to_owned(),
            micros => format!("{:.1} ms", micros as f64 / 1e3),
        };
        [
            status.name.clone(),
            status.state.to_string(),
            status.address.clone().unwrap_or_else(|| "-".to_owned()),
            untrusted::line(&status.remote),
            status.figure("connections_open").to_string(),
            bytes("bytes_up"),
            bytes("bytes_down"),
            round_trip,
        ]
    };
    let rows: Vec<_> = std::iter::once(head).chain(statuses.iter().map(row)).collect();
    let mut widths = [0; 8];
    for row in &rows {
        widths.iter_mut().zip(row).for_each(|(width, cell)| *width = (*width).max(cell.chars().count()));
    }
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
        let error = index.checked_sub(1).and_then(|index| statuses.get(index)).and_then(|status| status.error.as_ref());
        if let Some(error) = error {
            text.push_str(&format!("  {}\n", untrusted::line(error)));
        }
    }
    text
}

/// Prints lines of the log.
///
/// # Errors
/// Returns an error if a named tunnel is not open or its process does not answer.
pub(crate) async fn logs(args: &LogsArgs) -> Result<ExitCode, Failure> {
    let processes = wanted(&args.open.names).await?;
    let mut reading = tokio::task::JoinSet::new();
    for (process, names) in processes {
        let request = Request::Logs { names, follow: args.follow };
        reading.spawn(async move {
            let mut connection = process.ask(&request).await?;
            while let Ok(Some(Answer::Line { text: Some(text) })) = connection.receive().await {
                console::say(format!("{}\n", untrusted::line(&text)));
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(ended) = reading.join_next().await {
        ended.map_err(Failure::internal)??;
    }
    Ok(ExitCode::Ok)
}

/// Closes tunnels. A process ends when its last tunnel is closed.
///
/// # Errors
/// Returns an error if a named tunnel is not open or its process does not answer.
pub(crate) async fn down(args: &OpenArgs) -> Result<ExitCode, Failure> {
    send_all(&args.names, |names| Request::Down { names }).await
}

/// Closes tunnels and opens them again.
///
/// # Errors
/// Returns an error if a named tunnel is not open or its process does not answer.
pub(crate) async fn restart(args: &OpenArgs) -> Result<ExitCode, Failure> {
    send_all(&args.names, |names| Request::Restart { names }).await
}

/// Makes all processes read the configuration again.
///
/// # Errors
/// Returns an error if no process runs or the configuration is invalid.
pub(crate) async fn reload() -> Result<ExitCode, Failure> {
    send_all(&[], |_| Request::Reload).await
}

/// Sends a request to each process that has one of the tunnels, and prints the answers. Empty `names` mean all tunnels.
async fn send_all(names: &[String], request: impl Fn(Vec<String>) -> Request) -> Result<ExitCode, Failure> {
    for (process, names) in wanted(names).await? {
        let mut connection = process.ask(&request(names)).await?;
        match connection.receive().await {
            Ok(Some(Answer::Done { text })) => console::say(format!("{}\n", untrusted::line(&text))),
            Ok(Some(Answer::Refused { text })) => {
                let line = text.lines().next().unwrap_or_default().to_owned();
                let excerpt = text.lines().map(untrusted::line).collect::<Vec<_>>().join("\n");
                return Err(Failure::new(ExitCode::Config, "refused", line).with_excerpt(excerpt));
            }
            _ => {
                let text = format!("process {} ended before it answered", process.status.pid);
                return Err(Failure::new(ExitCode::Config, "control", text));
            }
        }
    }
    Ok(ExitCode::Ok)
}

/// Returns the processes that have the tunnels, each with the names of its tunnels. Empty `names` mean all processes.
async fn wanted(names: &[String]) -> Result<Vec<(Process, Vec<String>)>, Failure> {
    let processes = Process::all(&ControlFolder::open()?).await?;
    check(names, &processes)?;
    if processes.is_empty() {
        return Err(not_open("", &[]));
    }
    let parts = processes.into_iter().map(|process| {
        let own: Vec<_> = names.iter().filter(|name| process.has(name)).cloned().collect();
        (process, own)
    });
    Ok(parts.filter(|(_, own)| names.is_empty() || !own.is_empty()).collect())
}

/// Checks that each name is the name of an open tunnel.
fn check(names: &[String], processes: &[Process]) -> Result<(), Failure> {
    let open: Vec<_> =
        processes.iter().flat_map(|process| &process.status.tunnels).map(|tunnel| &*tunnel.name).collect();
    match names.iter().find(|name| !open.contains(&name.as_str())) {
        Some(name) => Err(not_open(name, &open)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_for_each_tunnel_and_its_error() {
        let ready = Status { name: "orders-db".into(), address: Some("127.0.0.1:5432".into()), ..Status::default() };
        let failed = Status { name: "b".into(), error: Some("no \u{1b}[31mnode".into()), ..Status::default() };
        let text = table(&[&ready, &failed]);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("NAME       STATE     ADDRESS         REMOTE"), "{text}");
        assert!(lines[1].starts_with("orders-db  starting  127.0.0.1:5432"), "{text}");
        assert_eq!(lines[3], "  no \\u{1b}[31mnode");
    }
}
