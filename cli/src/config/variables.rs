//! Replaces `${NAME}` and `${NAME:-default}` in values.

use super::problem::Author;

/// Replaces the variables of a value. `$$` becomes one `$`.
///
/// # Errors
/// Returns an error if a variable is not set, may not be read, or is malformed.
pub(super) fn replace(text: &str, author: &Author, lookup: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut replaced = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        replaced.push_str(before);
        rest = if let Some(after) = after.strip_prefix('$') {
            replaced.push('$');
            after
        } else if let Some((inner, after)) = after.strip_prefix('{').and_then(|after| after.split_once('}')) {
            replaced.push_str(&value(inner, author, &lookup)?);
            after
        } else if after.starts_with('{') {
            return Err("`${` without `}`".to_owned());
        } else {
            replaced.push('$');
            after
        };
    }
    Ok(replaced + rest)
}

fn value(inner: &str, author: &Author, lookup: &impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let (name, default) = inner.split_once(":-").map_or((inner, None), |(name, default)| (name, Some(default)));
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || !name.bytes().all(is_word) {
        return Err(format!("`{name}` is not the name of an environment variable"));
    }
    if matches!(author, Author::Project(_)) && !is_allowed_in_project(name) {
        return Err(format!(
            "a project's file cannot read the environment variable {name}, only USER, HOME, AWS_PROFILE, AWS_REGION, \
             AWS_DEFAULT_REGION and those that begin with SSM_FORWARD_"
        ));
    }
    let found = lookup(name).filter(|value| !value.is_empty() || default.is_none());
    let value = found.or_else(|| default.map(str::to_owned));
    value.ok_or_else(|| format!("the environment variable {name} is not set"))
}

/// Whether a project's file may read a variable. Other variables may be secrets, and a name that is looked up could reveal one.
fn is_allowed_in_project(name: &str) -> bool {
    matches!(name, "USER" | "HOME" | "AWS_PROFILE" | "AWS_REGION" | "AWS_DEFAULT_REGION")
        || name.starts_with("SSM_FORWARD_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "STAGE" | "SSM_FORWARD_STAGE" => Some("prod".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_replaced() {
        let replace = |text| replace(text, &Author::User, lookup);
        for (text, expected) in [
            ("db.${STAGE}.internal:5432", "db.prod.internal:5432"),
            ("${STAGE}${STAGE}", "prodprod"),
            ("${OTHER:-dev}", "dev"),
            ("${STAGE:-dev}", "prod"),
            ("${EMPTY:-dev}", "dev"),
            ("${EMPTY}", ""),
            ("$$ $$5 ${OTHER:-}", "$ $5 "),
            ("costs $5", "costs $5"),
        ] {
            assert_eq!(replace(text).as_deref(), Ok(expected), "{text}");
        }
        for (text, part) in
            [("${OTHER}", "OTHER is not set"), ("a ${", "without"), ("${}", "not the name"), ("${a b}", "not the name")]
        {
            let error = replace(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_projects_file_reads_no_secret() {
        let project = Author::Project("/project".into());
        assert_eq!(replace("${SSM_FORWARD_STAGE}", &project, lookup).as_deref(), Ok("prod"));
        assert!(replace("${STAGE}", &project, |_| panic!("it was read")).unwrap_err().contains("cannot read"));
    }
}
