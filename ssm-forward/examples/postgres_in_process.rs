//! A database driver that uses a stream of a session, without a local port: other users of the machine cannot connect.
//!
//! Any driver that accepts an `AsyncRead + AsyncWrite` works in this way. The example uses `tokio-postgres`, and a local Session
//! Manager whose managed node is this machine:
//!
//! ```text
//! cargo run -p ssm-forward --example postgres_in_process -- 127.0.0.1 5432 postgres
//! ```

#![expect(clippy::print_stdout, reason = "the output is the purpose of the example")]

use std::error::Error;
use std::sync::Arc;

use ssm_forward::{AwsConfig, AwsCredentials, AwsProvider, Session, SessionConfig, StartRequest};
use ssm_local::Local;
use tokio_postgres::{Config, NoTls};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [host, port, user] = arguments.as_slice() else {
        return Err("usage: postgres_in_process HOST PORT USER; PGPASSWORD is the password".into());
    };
    let local = Local::builder().fixed_credentials("AKIAEXAMPLE", "example").ports_only().start().await?;
    let config = AwsConfig {
        region: Some("us-east-1".into()),
        endpoint_url: Some(local.endpoint_url()),
        credentials: Some(AwsCredentials {
            access_key_id: "AKIAEXAMPLE".into(),
            secret_access_key: "example".into(),
            session_token: None,
        }),
        ..AwsConfig::default()
    };
    let provider = Arc::new(AwsProvider::new(config).await?);
    let request = StartRequest::to_remote_host("i-0123456789abcdef0", host, port.parse()?);
    let session = Session::start(provider, &request, SessionConfig::default(), |_id| {}, |_notice| {}).await?;

    // Each stream is one connection to the database. A session carries many streams.
    let stream = session.open_stream().await?;
    let mut database = Config::new();
    database.user(user).dbname("postgres").password(std::env::var("PGPASSWORD").unwrap_or_default());
    let (client, connection) = database.connect_raw(stream, NoTls).await?;
    let connection = tokio::spawn(connection);
    let row = client.query_one("SELECT current_user::text, 6 * 7", &[]).await?;
    let (name, product): (String, i32) = (row.get(0), row.get(1));
    println!("the database says: {name}, {product}");

    drop(client);
    connection.await??;
    session.terminate().await;
    local.shutdown().await;
    Ok(())
}
