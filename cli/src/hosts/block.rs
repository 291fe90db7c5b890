//! The entries of a process in `/etc/hosts`: a block between two marks that identify the process. The marks also show which entries
//! belong to a process that ended without removing them.

use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

use super::Name;

/// A process. The start time distinguishes it from a later process with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) pid: u32,
    /// Time of the process's start, in clock ticks since the start of the system.
    pub(super) started: u64,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.started)
    }
}

impl FromStr for Owner {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (pid, started) = text.split_once(' ').ok_or(())?;
        Ok(Self { pid: pid.parse().map_err(drop)?, started: started.parse().map_err(drop)? })
    }
}

const BEGIN: &str = "# begin aws-ssm-forward ";
const END: &str = "# end aws-ssm-forward ";

/// Returns the text with a block for these names, and without the blocks of `own` and of processes that have ended.
///
/// # Errors
/// Returns an error of one line if a name already has an entry with another address.
pub(super) fn updated(
    text: &str,
    own: Owner,
    names: &[Name],
    is_alive: impl Fn(Owner) -> bool,
) -> Result<String, String> {
    let mut updated = without_blocks(text, |owner| owner == own || !is_alive(owner));
    let mut block: Vec<&Name> = Vec::new();
    for name in names {
        let given = block.iter().find(|given| given.name == name.name);
        let address = given.map(|given| given.address.to_string()).or_else(|| entry(&updated, &name.name));
        if let Some(address) = address.filter(|address| *address != name.address.to_string()) {
            return Err(format!(
                "{} has the address {address} already; remove that entry, or close the tunnel that created it",
                name.name
            ));
        }
        // The entry is written even if another process has the same one, because that process may remove its entry earlier.
        if given.is_none() {
            block.push(name);
        }
    }
    if !block.is_empty() {
        let break_line = if updated.is_empty() || updated.ends_with('\n') { "" } else { "\n" };
        let _ = writeln!(updated, "{break_line}{BEGIN}{own}");
        for Name { address, name } in block {
            let _ = writeln!(updated, "{address} {name}");
        }
        let _ = writeln!(updated, "{END}{own}");
    }
    Ok(updated)
}

/// Removes the blocks whose owner is `unwanted`. Text that looks like a block but has no end is kept: it may be the user's.
fn without_blocks(text: &str, unwanted: impl Fn(Owner) -> bool) -> String {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let mark = |line: &str, mark| line.trim_end().strip_prefix(mark).and_then(|owner| owner.parse::<Owner>().ok());
    let (mut kept, mut rest) = (String::new(), lines.as_slice());
    while let [line, others @ ..] = rest {
        rest = others;
        if let Some(owner) = mark(line, BEGIN).filter(|&owner| unwanted(owner)) {
            let end = others.iter().position(|line| line.trim_end().starts_with("# "));
            if let Some((end, after)) = end.and_then(|end| others.get(end..)?.split_first())
                && mark(end, END) == Some(owner)
            {
                rest = after;
                continue;
            }
        }
        kept.push_str(line);
    }
    kept
}

/// Returns the address of a name in the text of a hosts file.
fn entry(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (entry, _) = line.split_once('#').unwrap_or((line, ""));
        let mut words = entry.split_whitespace();
        let address = words.next()?;
        words.any(|word| word.trim_end_matches('.').eq_ignore_ascii_case(name)).then(|| address.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const OWN: Owner = Owner { pid: 7, started: 99 };
    const OTHER: Owner = Owner { pid: 8, started: 5 };
    const FILE: &str = "127.0.0.1 localhost\n10.0.0.1 DB.other. db2 # old.example\n";

    fn name(number: u8, name: &str) -> Name {
        Name { address: Ipv4Addr::new(127, 64, 0, number), name: name.into() }
    }

    fn with(text: &str, own: Owner, names: &[Name]) -> Result<String, String> {
        updated(text, own, names, |owner| owner == OTHER)
    }

    #[test]
    fn a_block_comes_changes_and_goes() {
        let one = with(FILE, OWN, &[name(1, "one.example"), name(1, "one.example")]).unwrap();
        let block = "# begin aws-ssm-forward 7 99\n127.64.0.1 one.example\n# end aws-ssm-forward 7 99\n";
        assert_eq!(one, format!("{FILE}{block}"));
        let two = with(&one, OWN, &[name(2, "two.example"), name(3, "three.example")]).unwrap();
        assert_eq!(two.strip_prefix(FILE).unwrap().lines().count(), 4);
        assert_eq!(with(&two, OWN, &[]).unwrap(), FILE);
    }

    #[test]
    fn blocks_of_the_living_stay_and_those_of_the_dead_go() {
        let both =
            with(&with(FILE, OTHER, &[name(1, "one.example")]).unwrap(), OWN, &[name(2, "two.example")]).unwrap();
        // Another process with the same number.
        let next = Owner { started: 100, ..OWN };
        let left = with(&both, next, &[]).unwrap();
        assert!(left.contains("one.example") && !left.contains("two.example"), "{left}");
        assert!(left.starts_with(FILE));
    }

    #[test]
    fn a_name_that_has_an_entry_is_refused() {
        for taken in ["db.other", "db2"] {
            assert!(with(FILE, OWN, &[name(1, taken)]).unwrap_err().contains("has the address 10.0.0.1 already"));
        }
        with(FILE, OWN, &[name(1, "old.example")]).unwrap();
        let of_other = with(FILE, OTHER, &[name(1, "one.example")]).unwrap();
        assert!(with(&of_other, OWN, &[name(2, "one.example")]).is_err());
        let both = with(&of_other, OWN, &[name(1, "one.example")]).unwrap();
        assert_eq!(both.matches("127.64.0.1 one.example\n").count(), 2);
        assert!(with(FILE, OWN, &[name(1, "a.example"), name(2, "a.example")]).is_err());
    }

    #[test]
    fn what_is_not_ours_stays() {
        for text in [
            "# begin aws-ssm-forward 7 99\n10.0.0.1 mine\n",
            "# begin aws-ssm-forward 7 99\n10.0.0.1 mine\n# mine\n10.0.0.2 too\n# end aws-ssm-forward 7 99\n",
            "# begin aws-ssm-forward 7 99\n10.0.0.1 mine\n# end aws-ssm-forward 7 98\n",
            "# begin aws-ssm-forward x\n10.0.0.1 mine\n# end aws-ssm-forward x\n",
        ] {
            assert_eq!(with(text, OWN, &[]).unwrap(), text);
        }
        let text = "10.0.0.1 without-newline";
        let changed = with(text, OWN, &[name(1, "a.example")]).unwrap();
        assert_eq!(with(&changed, OWN, &[]).unwrap(), format!("{text}\n"));
    }
}
