//! `ls`: lists the nodes, services and containers that can be reached, as an alternative to the AWS console.

use serde_json::{Value, json};
use ssm_forward::{Node, RunningTask, ServiceKind, ServiceSummary};

use crate::args::{Listed, LsArgs, OutputFormat};
use crate::connect;
use crate::exit_code::{ExitCode, Failure};
use crate::{console, untrusted, writer};

/// Prints the list.
///
/// # Errors
/// Returns the API's error, or an error if standard output cannot be written.
pub(crate) async fn run(args: &LsArgs) -> Result<ExitCode, Failure> {
    let aws = connect::aws(&args.aws).await?;
    let services = async |kind| Ok::<_, Failure>(rows(&aws.list_services(kind).await?, &SERVICE_COLUMNS, service));
    let rows = match args.what {
        Listed::Nodes => rows(&aws.list_nodes().await?, &NODE_COLUMNS, node),
        Listed::Rds => services(ServiceKind::Rds).await?,
        Listed::ElastiCache => services(ServiceKind::ElastiCache).await?,
        Listed::OpenSearch => services(ServiceKind::OpenSearch).await?,
        Listed::Eks => services(ServiceKind::Eks).await?,
        Listed::Ecs => rows(&aws.list_ecs().await?, &TASK_COLUMNS, task),
    };
    if rows.rows.is_empty() && args.output == OutputFormat::Text {
        let (what, place) = (args.what.words(), aws.place());
        console::note(&format!("there are no {what} in {place}"));
    }
    writer::print(&match args.output {
        OutputFormat::Json => json(&rows),
        OutputFormat::Text => table(&rows),
    })?;
    Ok(ExitCode::Ok)
}

/// A table: the names of the columns as in JSON, and the cells of each row.
struct Rows {
    columns: &'static [&'static str],
    rows: Vec<Vec<Value>>,
}

fn rows<T, const N: usize>(items: &[T], columns: &'static [&'static str; N], row: fn(&T) -> [Value; N]) -> Rows {
    Rows { columns, rows: items.iter().map(|item| row(item).into()).collect() }
}

const NODE_COLUMNS: [&str; 7] = ["id", "name", "address", "computer_name", "platform", "agent_version", "connection"];

fn node(node: &Node) -> [Value; 7] {
    [
        json!(node.id),
        json!(node.name),
        json!(node.address),
        json!(node.computer_name),
        json!(node.platform),
        json!(node.agent_version),
        json!(node.connection()),
    ]
}

const SERVICE_COLUMNS: [&str; 4] = ["name", "engine", "status", "endpoint"];

fn service(service: &ServiceSummary) -> [Value; 4] {
    [json!(service.spec.to_string()), json!(service.engine), json!(service.status), json!(service.endpoint)]
}

const TASK_COLUMNS: [&str; 3] = ["target", "task", "connection"];

fn task(task: &RunningTask) -> [Value; 3] {
    [json!(task.spec.to_string()), json!(task.task), json!(task.connection)]
}

/// Returns the table as a JSON array of objects.
fn json(rows: &Rows) -> String {
    let object = |row: &Vec<Value>| -> Value {
        rows.columns.iter().map(|column| (*column).to_owned()).zip(row.iter().cloned()).collect()
    };
    let list: Value = rows.rows.iter().map(object).collect();
    format!("{list:#}\n")
}

/// Returns the table as text. Each column is as wide as its widest cell; columns are separated by two spaces.
fn table(rows: &Rows) -> String {
    if rows.rows.is_empty() {
        return String::new();
    }
    let head = rows.columns.iter().map(|column| column.replace('_', " ").to_uppercase()).collect();
    let text = |cell: &Value| untrusted::line(cell.as_str().unwrap_or("-"));
    let body = rows.rows.iter().map(|row| row.iter().map(text).collect());
    let lines: Vec<Vec<String>> = std::iter::once(head).chain(body).collect();
    let width = |at: usize| lines.iter().filter_map(|line| line.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..rows.columns.len()).map(|at| width(at).unwrap_or_default()).collect();
    let line = |line: &Vec<String>| {
        let cells: Vec<_> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_columns_and_nothing_that_a_terminal_obeys() {
        let row = |cells: [&str; 2]| cells.map(|cell| json!(cell)).to_vec();
        let rows = Rows {
            columns: &["id", "agent_version"],
            rows: vec![row(["i-1", "3"]), vec![json!("i-long"), json!(null)], row(["a\u{1b}b", "3"])],
        };
        assert_eq!(table(&rows), "ID        AGENT VERSION\ni-1       3\ni-long    -\na\\u{1b}b  3\n");
        assert_eq!(json(&Rows { columns: &["id"], rows: Vec::new() }), "[]\n");
    }
}
