//! The structure of lists in the Query protocol's XML.

use serde::Deserialize;

/// A list. Each item is in an element, whose name can be any: `item`, `member`, `DBInstance`.
#[derive(Debug, Deserialize)]
pub(super) struct List<T> {
    #[serde(rename = "$value", default = "Vec::new")]
    pub(super) items: Vec<T>,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { items: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Group {
        #[serde(default)]
        members: List<Member>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "PascalCase")]
    struct Member {
        name: String,
    }

    #[test]
    fn lists_are_read_whatever_their_elements_are_called() {
        let read = |text: &str| quick_xml::de::from_str::<Group>(text).unwrap().members.items;
        let a = || Member { name: "a".into() };
        assert_eq!(read("<G><Members><member><Name>a</Name></member></Members></G>"), [a()]);
        let spaced =
            "<G>\n <Members>\n  <M>\n   <Name>a</Name>\n  </M>\n  <M><Name>a</Name><X/></M>\n </Members>\n</G>";
        assert_eq!(read(spaced), [a(), a()]);
        assert_eq!(read("<G><Members/></G>"), []);
        assert_eq!(read("<G><Members></Members></G>"), []);
        assert_eq!(read("<G></G>"), []);
    }
}
