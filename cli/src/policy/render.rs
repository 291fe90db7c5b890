//! Renders a policy as JSON or Terraform.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::statements::{Policy, Statement};

/// Returns the policy document as JSON, with a line break at its end.
pub(super) fn json(policy: &Policy) -> String {
    let statements: Vec<Value> = policy.statements.iter().map(statement).collect();
    let document = json!({ "Version": "2012-10-17", "Statement": statements });
    format!("{document:#}\n")
}

fn statement(statement: &Statement) -> Value {
    let mut value = json!({
        "Sid": statement.sid,
        "Effect": "Allow",
        "Action": statement.actions,
        "Resource": statement.resources,
    });
    let mut conditions: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    for (operator, key, value) in &statement.conditions {
        conditions.entry(operator).or_default().insert(key, value);
    }
    if let Some(object) = value.as_object_mut().filter(|_| !conditions.is_empty()) {
        object.insert("Condition".to_owned(), json!(conditions));
    }
    value
}

/// Returns a Terraform data source in the format of `terraform fmt`, with the notes as comments.
pub(super) fn terraform(policy: &Policy) -> String {
    let mut text = String::new();
    for note in &policy.notes {
        let _ = writeln!(text, "# {note}");
    }
    let _ = writeln!(text, "data \"aws_iam_policy_document\" \"session_manager\" {{");
    for (at, statement) in policy.statements.iter().enumerate() {
        let blank = if at == 0 { "" } else { "\n" };
        let _ = write!(text, "{blank}  statement {{\n    sid = {}\n", quote(&statement.sid));
        list(&mut text, "actions", statement.actions.iter().copied());
        list(&mut text, "resources", statement.resources.iter().map(String::as_str));
        for (operator, key, value) in &statement.conditions {
            let _ = write!(
                text,
                "\n    condition {{\n      test     = {}\n      variable = {}\n      values   = [{}]\n    }}\n",
                quote(operator),
                quote(key),
                quote(value)
            );
        }
        text.push_str("  }\n");
    }
    text.push_str("}\n");
    text
}

fn list<'a>(text: &mut String, name: &str, values: impl Iterator<Item = &'a str>) {
    let _ = write!(text, "\n    {name} = [\n");
    for value in values {
        let _ = writeln!(text, "      {},", quote(value));
    }
    text.push_str("    ]\n");
}

/// Quotes a string for HCL. Variables of the policy are escaped, so that Terraform does not interpret them.
fn quote(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "$${").replace("%{", "%%{");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policys_variables_are_not_terraforms() {
        assert_eq!(quote("session/${aws:userid}-*"), r#""session/$${aws:userid}-*""#);
        assert_eq!(quote(r#"a"b\c"#), r#""a\"b\\c""#);
    }
}
