//! Detects whether a local program that has ended its sending side still waits for an answer.

use std::net::SocketAddr;
use std::time::Duration;

/// The local program at the other end of a TCP connection: the program's address and our address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program(Option<(SocketAddr, SocketAddr)>);

/// Delays before the checks. The first check is immediate, so that a program that opens one connection after the other does not
/// wait for it. The kernel may release the socket some microseconds later.
const CHECK_DELAYS: [Duration; 6] =
    [Duration::ZERO, millis(1), millis(20), millis(80), millis(400), Duration::from_secs(2)];
/// Delay before each further check.
const LAST_DELAY: Duration = Duration::from_secs(10);

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The result of a check of the system's sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only Linux has this information"))]
enum Owner {
    /// A process holds the socket.
    Present,
    /// No process holds the socket.
    Gone,
    /// The system does not provide the information, or the query failed.
    Unknown,
}

impl Program {
    /// `ends` are the program's address and our address. Programs on other machines are ignored.
    pub(crate) fn new(ends: Option<(SocketAddr, SocketAddr)>) -> Self {
        Self(ends.filter(|(peer, _)| peer.ip().is_loopback()))
    }

    /// Completes when the program, which has ended its sending side, has closed its socket completely. TCP does not distinguish
    /// these two states. But if the program runs on this machine, Linux knows whether its socket still has an owner. Otherwise this
    /// method never completes.
    pub(crate) async fn gone(self) {
        let Some((peer, ours)) = self.0 else { return std::future::pending().await };
        for pause in CHECK_DELAYS.into_iter().chain(std::iter::repeat(LAST_DELAY)) {
            // A sleep of zero would take until the timer's next tick, one millisecond.
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            if owner(peer, ours) == Owner::Gone {
                return;
            }
        }
    }
}

/// Opens the netlink socket in advance, because no descriptor may be free when [`Program::gone`] needs it.
pub(crate) fn prepare() {
    #[cfg(target_os = "linux")]
    table::prepare();
}

#[cfg(not(target_os = "linux"))]
fn owner(_local: SocketAddr, _remote: SocketAddr) -> Owner {
    Owner::Unknown
}

/// Whether a process holds the socket from `local` to `remote`.
#[cfg(target_os = "linux")]
fn owner(local: SocketAddr, remote: SocketAddr) -> Owner {
    match table::has_owner(local, remote) {
        Ok(true) => Owner::Present,
        Ok(false) => Owner::Gone,
        Err(error) => {
            tracing::debug!(%error, "the kernel does not report the owner of a socket");
            Owner::Unknown
        }
    }
}

/// Queries the kernel for one socket (`sock_diag`). This takes microseconds, regardless of the number of sockets; `/proc/net/tcp`
/// would list all of them. The whole process keeps one netlink socket open: a query must not fail because connections have used up
/// all descriptors, because its result shows which connections can be closed.
#[cfg(target_os = "linux")]
mod table {
    use std::io;
    use std::net::SocketAddr;
    use std::sync::{Mutex, PoisonError};

    use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
    use netlink_packet_sock_diag::SockDiagMessage;
    use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
    use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
    use netlink_sys::{Socket, SocketAddr as KernelAddr, protocols::NETLINK_SOCK_DIAG};

    static KERNEL: Mutex<Option<Kernel>> = Mutex::new(None);

    const NO_SUCH_SOCKET: i32 = 2;
    const ANY_COOKIE: [u8; 8] = [0xff; 8];

    pub(super) fn prepare() {
        let mut kernel = KERNEL.lock().unwrap_or_else(PoisonError::into_inner);
        if kernel.is_none() {
            *kernel = Kernel::open()
                .inspect_err(|error| tracing::debug!(%error, "the socket table cannot be queried yet"))
                .ok();
        }
    }

    pub(super) fn has_owner(local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
        let mut slot = KERNEL.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kernel = match slot.take() {
            Some(kernel) => kernel,
            None => Kernel::open()?,
        };
        let answer = kernel.has_owner(local, remote);
        // After an error, an outdated answer may still arrive on this socket, so the socket is closed.
        if answer.is_ok() {
            *slot = Some(kernel);
        }
        answer
    }

    /// The netlink socket for queries. There is one query at a time.
    struct Kernel {
        socket: Socket,
        asked: u32,
    }

    impl Kernel {
        fn open() -> io::Result<Self> {
            let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
            socket.bind_auto()?;
            socket.connect(&KernelAddr::new(0, 0))?;
            // The answer is available as soon as the query has been sent, so reading never waits.
            socket.set_non_blocking(true)?;
            Ok(Self { socket, asked: 0 })
        }

        fn has_owner(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
            self.asked = self.asked.wrapping_add(1);
            self.socket.send(&question(local, remote, self.asked), 0)?;
            loop {
                let (answer, _) = self.socket.recv_from_full()?;
                let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&answer).map_err(io::Error::other)?;
                if answer.header.sequence_number != self.asked {
                    continue;
                }
                return match answer.payload {
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => Ok(found.header.inode != 0),
                    NetlinkPayload::Error(error) if error.raw_code() == -NO_SUCH_SOCKET => Ok(false),
                    NetlinkPayload::Error(error) => Err(io::Error::from_raw_os_error(-error.raw_code())),
                    _ => Err(io::ErrorKind::InvalidData.into()),
                };
            }
        }
    }

    fn question(local: SocketAddr, remote: SocketAddr, number: u32) -> Vec<u8> {
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
        header.sequence_number = number;
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }
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
    fn a_socket_that_nobody_knows_has_no_owner_however_often_one_asks() {
        let nobody: SocketAddr = "127.0.0.1:1".parse().unwrap();
        for _ in 0..3 {
            assert_eq!(owner(nobody, "127.0.0.1:2".parse().unwrap()), Owner::Gone);
        }
    }
}
