//! `bridge shell TARGET` connects a shell with standard input and output. `bridge forward TARGET PORT` prints a local port and
//! forwards it until standard input ends. Region, credentials and endpoint are read from the environment.

use std::error::Error;
use std::sync::Arc;

use aws_ssm_bridge::{
    EndpointPolicy, PortForwardConfig, PortForwarder, Session, SessionBuilder, SessionManager, ShutdownSignal,
};
use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, stdin, stdout};

type Outcome = Result<(), Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let manager = SessionManager::from_conf(&aws_config::load_from_env().await);
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["shell", target] => shell(builder(target).start_with(&manager).await?).await,
        ["forward", target, port] => {
            let builder = builder(target).port_forward(port.parse()?);
            forward(builder.start_with(&manager).await?).await
        }
        _ => Err("usage: bridge shell TARGET | bridge forward TARGET PORT".into()),
    }
}

fn builder(target: &str) -> SessionBuilder {
    SessionBuilder::new(target).reason("bridge").endpoint_policy(EndpointPolicy::AllowAny)
}

async fn shell(session: Session) -> Outcome {
    let mut output = session.output();
    session.wait_ready().await?;
    eprintln!("encrypted: {}", session.is_encrypted());
    session.send_terminal_size(120, 40).await?;
    let typing = async {
        let mut keys = [0; 1024];
        loop {
            match stdin().read(&mut keys).await? {
                0 => return Ok::<_, Box<dyn Error>>(()),
                count => session.send(keys[..count].to_vec()).await?,
            }
        }
    };
    let showing = async {
        while let Some(chunk) = output.next().await {
            stdout().write_all(&chunk).await?;
            stdout().flush().await?;
        }
        Ok(())
    };
    tokio::try_join!(typing, showing)?;
    session.closed().await;
    eprintln!("closed: {:?}", session.close_reason());
    Ok(())
}

async fn forward(session: Session) -> Outcome {
    let session = Arc::new(session);
    session.wait_ready().await?;
    let forwarder = PortForwarder::bind(PortForwardConfig::default()).await?;
    println!("{}", forwarder.local_addr().port());
    let shutdown = ShutdownSignal::new();
    let until_end_of_input = async {
        let end = stdin().read(&mut [0; 1]).await;
        shutdown.shutdown();
        end
    };
    let (forwarded, read) = tokio::join!(forwarder.forward(session.clone(), shutdown.clone()), until_end_of_input);
    session.terminate().await?;
    forwarded?;
    read?;
    Ok(())
}
