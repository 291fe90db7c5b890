//! Input checks of all operations, and paging.

use std::ops::RangeInclusive;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use regex_lite::Regex;

use super::error::ApiError;

/// Checks that a mandatory member is present.
pub(super) fn required<'a>(member: &str, value: Option<&'a str>) -> Result<&'a str, ApiError> {
    value.ok_or_else(|| ApiError::constraint(member, None, "not be null"))
}

/// Checks that a string has a length in this range.
pub(super) fn length(member: &str, value: &str, range: RangeInclusive<usize>) -> Result<(), ApiError> {
    let count = value.chars().count();
    let constraint = if count < *range.start() {
        format!("have length greater than or equal to {}", range.start())
    } else if count > *range.end() {
        format!("have length less than or equal to {}", range.end())
    } else {
        return Ok(());
    };
    Err(ApiError::constraint(member, Some(value), &constraint))
}

/// Checks that a string matches this pattern.
pub(super) fn pattern(member: &str, value: &str, pattern: &str) -> Result<(), ApiError> {
    if Regex::new(pattern).is_ok_and(|regex| regex.is_match(value)) {
        return Ok(());
    }
    Err(ApiError::constraint(member, Some(value), &format!("satisfy regular expression pattern: {pattern}")))
}

/// Checks that a string is one of these values.
pub(super) fn one_of(member: &str, value: &str, allowed: &[&str]) -> Result<(), ApiError> {
    if allowed.contains(&value) {
        return Ok(());
    }
    let constraint = format!("satisfy enum value set: [{}]", allowed.join(", "));
    Err(ApiError::constraint(member, Some(value), &constraint))
}

/// The requested part (page) of a list.
#[derive(Clone, Debug)]
pub(super) struct Page {
    size: usize,
    offset: usize,
    list: &'static str,
}

impl Page {
    /// Parses `MaxResults` and `NextToken`. A token is valid only for the list for which it was issued.
    pub(super) fn new(
        list: &'static str,
        max_results: Option<i64>,
        allowed: RangeInclusive<i64>,
        next_token: Option<&str>,
    ) -> Result<Self, ApiError> {
        let size = max_results.unwrap_or_else(|| *allowed.end());
        let constraint = if size < *allowed.start() {
            Some(format!("have value greater than or equal to {}", allowed.start()))
        } else if size > *allowed.end() {
            Some(format!("have value less than or equal to {}", allowed.end()))
        } else {
            None
        };
        if let Some(constraint) = constraint {
            return Err(ApiError::constraint("maxResults", Some(&size.to_string()), &constraint));
        }
        let offset = match next_token {
            None | Some("") => 0,
            Some(token) => read_token(list, token)
                .ok_or_else(|| ApiError::new("InvalidNextToken", "The specified token is not valid."))?,
        };
        Ok(Self { size: usize::try_from(size).unwrap_or_default(), offset, list })
    }

    /// Returns the requested part of `items`, and the token of the next part.
    pub(super) fn cut<T>(&self, items: impl IntoIterator<Item = T>) -> (Vec<T>, Option<String>) {
        let mut rest = items.into_iter().skip(self.offset);
        let part: Vec<T> = rest.by_ref().take(self.size).collect();
        let more = rest.next().is_some();
        (part, more.then(|| URL_SAFE_NO_PAD.encode(format!("{}:{}", self.list, self.offset + self.size))))
    }
}

fn read_token(list: &str, token: &str) -> Option<usize> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    text.strip_prefix(list)?.strip_prefix(':')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_the_list_exactly() {
        let (mut token, mut seen) = (None, Vec::new());
        loop {
            let page = Page::new("list", Some(5), 5..=50, token.as_deref()).unwrap();
            let (part, next) = page.cut(0..12);
            seen.extend(part);
            token = next;
            if token.is_none() {
                break;
            }
        }
        assert_eq!(seen, (0..12).collect::<Vec<_>>());
        let (all, next) = Page::new("list", Some(12), 5..=50, None).unwrap().cut(0..12);
        assert_eq!((all.len(), next), (12, None));
    }

    #[test]
    fn foreign_tokens_and_sizes_are_refused() {
        let (_, token) = Page::new("one", Some(5), 5..=50, None).unwrap().cut(0..12);
        for token in [token.as_deref().unwrap(), "x", "!!"] {
            assert_eq!(Page::new("other", None, 5..=50, Some(token)).unwrap_err().code, "InvalidNextToken");
        }
        assert!(Page::new("one", Some(4), 5..=50, None).unwrap_err().message.contains("greater than or equal to 5"));
        assert!(Page::new("one", Some(51), 5..=50, None).unwrap_err().message.contains("less than or equal to 50"));
    }
}
