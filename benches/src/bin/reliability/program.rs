//! The local programs, which run their scripts.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::sleep;

use crate::load::{Broken, Pattern, Pauses, Progress, Script, expect, send};

/// The behaviour of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// The program follows the script, and pauses reading at times.
    Whole(Pauses),
    /// The program resets the connection after reading this number of bytes of the first answer.
    Reset { after: u32 },
    /// The program closes the connection after sending its first part, without waiting for an answer.
    Close,
}

impl Manner {
    /// The program follows the script, and reads all data immediately.
    pub(crate) const PROMPT: Self = Self::Whole(Pauses { every: 0, time: Duration::ZERO });

    /// Whether all bytes of the script must arrive.
    pub(crate) fn is_whole(self) -> bool {
        matches!(self, Self::Whole(_))
    }
}

/// Runs the program's part of a script, over a new connection.
pub(crate) async fn converse(
    to: SocketAddr,
    script: Script,
    manner: Manner,
    progress: Progress<'_>,
) -> Result<(), Broken> {
    converse_from(None, to, script, manner, progress).await
}

/// The same, with a given local address.
pub(crate) async fn converse_from(
    from: Option<Ipv4Addr>,
    to: SocketAddr,
    script: Script,
    manner: Manner,
    progress: Progress<'_>,
) -> Result<(), Broken> {
    let mut stream = connect(from, to, manner).await.map_err(|error| match error.kind() {
        // A reset can arrive before the program knows that it is connected.
        io::ErrorKind::ConnectionReset => Broken::Reset,
        _ => Broken::Unopened(error.to_string()),
    })?;
    stream.write_all(&script.encode()).await.map_err(|error| Broken::io(&error))?;
    let (mut up, mut down) = (Pattern::up(&script), Pattern::down(&script));
    let pauses = match manner {
        Manner::Whole(pauses) => pauses,
        Manner::Reset { after } => {
            send(&mut stream, &mut up, script.up, &script, progress).await?;
            expect(&mut stream, &mut down, after.min(script.down), Pauses::default(), progress).await?;
            let reset = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            return reset.map_err(|error| Broken::io(&error));
        }
        Manner::Close => return send(&mut stream, &mut up, script.up, &script, progress).await,
    };
    for round in 1..=script.rounds {
        send(&mut stream, &mut up, script.up, &script, progress).await?;
        if round == script.rounds {
            stream.shutdown().await.map_err(|error| Broken::io(&error))?;
        }
        expect(&mut stream, &mut down, script.down, pauses, progress).await?;
        if round < script.rounds {
            sleep(script.pause()).await;
        }
    }
    match stream.read(&mut [0]).await {
        Ok(0) => Ok(()),
        Ok(_) => Err(Broken::Wrong("bytes after the last".into())),
        Err(error) => Err(Broken::io(&error)),
    }
}

/// Limits the system's receive buffer, so that the system does not buffer data that a slow reader has not read.
const SLOW_BUFFER: u32 = 64 << 10;

async fn connect(from: Option<Ipv4Addr>, to: SocketAddr, manner: Manner) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(from) = from {
        socket.bind((from, 0).into())?;
    }
    if manner.is_whole() && manner != Manner::PROMPT {
        socket.set_recv_buffer_size(SLOW_BUFFER)?;
    }
    socket.connect(to).await
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::load::HEADER;
    use crate::service::Service;

    fn script() -> Script {
        Script { seed: 7, rounds: 3, up: 10_000, down: 5000, burst: 4000, pause: 0, deaf: 0 }
    }

    #[tokio::test]
    async fn a_whole_script_is_exact_at_both_ends() {
        let service = Service::start().await.unwrap();
        assert_eq!(converse(service.address, script(), Manner::PROMPT, &|_| {}).await, Ok(()));
        assert_eq!(service.served(7).map(|served| served.end), Some(Ok(())));
    }

    #[tokio::test]
    async fn a_wrong_byte_a_clean_end_and_a_reset_are_told_apart() {
        for (answer, linger, wanted) in [
            (vec![0; 5000], None, "Wrong"),
            (Pattern::down(&script()).take(100).to_vec(), None, "CutShort"),
            (Pattern::down(&script()).take(100).to_vec(), Some(Duration::ZERO), "Reset"),
        ] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let address = listener.local_addr().unwrap();
            let liar = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.read_exact(&mut vec![0; HEADER + 10_000]).await.unwrap();
                stream.write_all(&answer).await.unwrap();
                socket2::SockRef::from(&stream).set_linger(linger).unwrap();
            });
            let broken = converse(address, script(), Manner::PROMPT, &|_| {}).await.unwrap_err();
            assert!(format!("{broken:?}").starts_with(wanted), "{broken:?}");
            liar.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_program_that_hangs_up_is_told_from_one_that_was_cut_off() {
        let service = Service::start().await.unwrap();
        let wait = async |seed| loop {
            match service.served(seed) {
                Some(served) => break served,
                None => sleep(Duration::from_millis(5)).await,
            }
        };
        let long = Script { rounds: 1, down: 64 << 20, ..script() };
        assert_eq!(converse(service.address, long, Manner::Reset { after: 1000 }, &|_| {}).await, Ok(()));
        assert_eq!(wait(7).await.end, Err(Broken::Reset));
        assert_eq!(converse(service.address, long, Manner::Close, &|_| {}).await, Ok(()));
        let served = wait(7).await;
        assert_eq!((served.received, served.end.is_err()), (u64::from(long.up), true));
        assert_eq!(service.open_connections(), 0);
    }
}
