//! Finds the process that listens on a TCP port, if the system allows it (Linux).

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

/// A process that listens on a port.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pid: u32,
    name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == std::process::id() {
            return f.write_str("another -L of this command");
        }
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

/// Returns the process that listens on `address` (`ip:port`), if it can be found. Only root can find the processes of other users.
pub(crate) fn of(address: &str) -> Option<Holder> {
    let port = address.parse::<SocketAddr>().ok()?.port();
    let inodes: Vec<u64> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listening_inodes(&table, port))
        .collect();
    if inodes.is_empty() {
        return None;
    }
    let wanted: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        holds_one_of(&entry.path(), &wanted).then(|| Holder { pid, name: name_of(&entry.path()) })
    })
}

/// Returns the inodes of the sockets that listen on `port`. `table` is the text of `/proc/net/tcp`.
fn listening_inodes(table: &str, port: u16) -> Vec<u64> {
    const LISTEN: &str = "0A";
    let inode = |line: &str| {
        let mut fields = line.split_whitespace();
        let (_, local_port) = fields.nth(1)?.rsplit_once(':')?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?.parse().ok()?;
        (u16::from_str_radix(local_port, 16) == Ok(port) && state == LISTEN).then_some(inode)
    };
    table.lines().skip(1).filter_map(inode).collect()
}

fn holds_one_of(process: &Path, sockets: &[String]) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return false };
    descriptors
        .flatten()
        .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
        .any(|link| sockets.iter().any(|socket| link.as_os_str() == socket.as_str()))
}

fn name_of(process: &Path) -> String {
    fs::read_to_string(process.join("comm")).map_or_else(|_| "a process".into(), |name| name.trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0CEA 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000
   1: 0100007F:0CEA 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0000000000000000
   2: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0000000000000000";

    #[test]
    fn only_the_listening_socket_of_the_port_counts() {
        assert_eq!(listening_inodes(TABLE, 3306), [4711]);
        assert_eq!(listening_inodes(TABLE, 80), [4713]);
        assert!(listening_inodes(TABLE, 81).is_empty());
        assert!(listening_inodes("", 80).is_empty());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_port_of_this_process_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let holder = of(&listener.local_addr().unwrap().to_string()).unwrap();
        assert_eq!(holder.pid, std::process::id());
        assert_eq!(of("not an address"), None);
    }
}
