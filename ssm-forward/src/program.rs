//! Whether a local program that sends nothing more still waits for an answer.

use std::net::SocketAddr;
use std::time::Duration;

/// The local program at the other end of a TCP connection: its address and ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program(Option<(SocketAddr, SocketAddr)>);

/// When to look, each after the one before.
const LOOKS: [Duration; 6] =
    [Duration::ZERO, millis(20), millis(80), millis(400), Duration::from_secs(2), Duration::from_secs(10)];

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl Program {
    /// A program with these addresses, its own and ours; `None` if there are none.
    pub(crate) fn new(ends: Option<(SocketAddr, SocketAddr)>) -> Self {
        Self(ends.filter(|(peer, _)| peer.ip().is_loopback()))
    }

    /// Completes when the program, which ended its sending side, has closed its socket altogether. From TCP alone nobody can
    /// tell the two apart, but where the program runs on this machine, Linux knows whether its socket still has an owner.
    /// Elsewhere this never completes.
    pub(crate) async fn gone(self) {
        if let Some((peer, ours)) = self.0 {
            for pause in LOOKS {
                tokio::time::sleep(pause).await;
                match has_owner(peer, ours) {
                    Some(true) => {}
                    Some(false) => return,
                    None => break,
                }
            }
        }
        std::future::pending().await
    }
}

/// Whether some process holds the socket from `local` to `remote`. Asks the kernel for this one socket (`sock_diag`), which
/// takes microseconds however many there are; `/proc/net/tcp` would list them all. `None`: the kernel does not tell.
#[cfg(target_os = "linux")]
fn has_owner(local: SocketAddr, remote: SocketAddr) -> Option<bool> {
    use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
    use netlink_packet_sock_diag::SockDiagMessage;
    use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
    use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
    use netlink_sys::{Socket, SocketAddr as KernelAddr, protocols::NETLINK_SOCK_DIAG};

    const NO_SUCH_SOCKET: i32 = 2;
    const ANY_COOKIE: [u8; 8] = [0xff; 8];
    let request = InetRequest {
        family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: local.port(),
            destination_port: remote.port(),
            source_address: local.ip(),
            destination_address: remote.ip(),
            interface_id: 0,
            cookie: ANY_COOKIE,
        },
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_SOCK_DIAG).ok()?;
    socket.bind_auto().ok()?;
    socket.connect(&KernelAddr::new(0, 0)).ok()?;
    socket.send(&bytes, 0).ok()?;
    let (answer, _) = socket.recv_from_full().ok()?;
    match NetlinkMessage::<SockDiagMessage>::deserialize(&answer).ok()?.payload {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => Some(found.header.inode != 0),
        NetlinkPayload::Error(error) if error.raw_code() == -NO_SUCH_SOCKET => Some(false),
        _ => None,
    }
}

#[cfg(not(target_os = "linux"))]
fn has_owner(_local: SocketAddr, _remote: SocketAddr) -> Option<bool> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn a_program_that_only_ended_its_sending_side_is_not_gone() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let program = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (local, peer) = listener.accept().unwrap();
            program.shutdown(Shutdown::Write).unwrap();
            let gone = Program::new(Some((peer, local.local_addr().unwrap()))).gone();
            tokio::pin!(gone);
            assert!(tokio::time::timeout(millis(50), &mut gone).await.is_err(), "{address}");
            drop(program);
            tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
        }
    }

    #[test]
    fn a_socket_that_nobody_knows_has_no_owner() {
        let nobody: SocketAddr = "127.0.0.1:1".parse().unwrap();
        assert_eq!(has_owner(nobody, "127.0.0.1:2".parse().unwrap()), Some(false));
    }
}
