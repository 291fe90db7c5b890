//! The command line with which a service's usual client connects through the tunnel, ready to paste into a shell.
//!
//! The service's certificate names the service's real host, but the client connects to a local address. If the client has
//! options for both, the command line sets them, so that the client still verifies the certificate.

use std::path::Path;

use ssm_forward::ServiceEndpoint;

/// The local end of the tunnel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalEnd<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: u16,
}

/// The URL at which AWS publishes the RDS CA bundle.
pub(crate) const RDS_CA_URL: &str = "https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem";

/// Settings of a client in addition to the service's endpoint.
pub(crate) struct Client<'a> {
    pub(crate) local: LocalEnd<'a>,
    /// The file with the RDS CA bundle.
    pub(crate) ca: &'a Path,
    /// The user that the command line names; by default, the master user.
    pub(crate) user: Option<&'a str>,
    /// A file with the password for the engine's client.
    pub(crate) password_file: Option<&'a Path>,
    /// A kubeconfig that uses the tunnel.
    pub(crate) kubeconfig: Option<&'a Path>,
}

/// Returns the command line; `None` for an engine without a common client.
pub(crate) fn command_line(service: &ServiceEndpoint, client: &Client<'_>) -> Option<String> {
    let words = match family(&service.engine)? {
        Family::MySql => mysql(service, client),
        Family::Postgres => return Some(postgres(service, client)),
        Family::Redis => redis(service, client),
        Family::SqlServer => return Some(sql_server(service, client)),
        Family::MongoDb => mongodb(service, client),
        Family::OpenSearch => curl(service, client),
        Family::Kubernetes => kubectl(service, client),
    };
    Some(join(&words))
}

/// Engines that share a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    MySql,
    Postgres,
    Redis,
    SqlServer,
    MongoDb,
    OpenSearch,
    Kubernetes,
}

/// Returns the family of an engine. `engine` is AWS's name of the engine, such as `aurora-mysql` or `sqlserver-ex`.
pub(crate) fn family(engine: &str) -> Option<Family> {
    let has = |part: &str| engine.contains(part);
    Some(match engine {
        "opensearch" => Family::OpenSearch,
        "kubernetes" => Family::Kubernetes,
        "docdb" => Family::MongoDb,
        "redis" | "valkey" => Family::Redis,
        // The first version of Aurora, compatible with MySQL, has only this name.
        "aurora" => Family::MySql,
        _ if has("mysql") || has("mariadb") => Family::MySql,
        _ if has("postgres") => Family::Postgres,
        _ if has("sqlserver") => Family::SqlServer,
        _ => return None,
    })
}

/// Verifies the CA but not the host name, because the `mysql` client compares the certificate's name with the host that it
/// connects to, and has no option for another name. `loose-` makes MariaDB's client ignore an option that only MySQL's client
/// has.
fn mysql(service: &ServiceEndpoint, client: &Client<'_>) -> Vec<String> {
    let mut words = vec!["mysql".to_owned()];
    // The clients accept this option only in the first place.
    words.extend(client.password_file.map(|file| format!("--defaults-extra-file={}", file.display())));
    words.extend([format!("--host={}", client.local.host), format!("--port={}", client.local.port)]);
    words.extend(["--protocol=tcp".to_owned(), format!("--ssl-ca={}", client.ca.display())]);
    words.push("--loose-ssl-mode=VERIFY_CA".to_owned());
    words.extend(user(service, client).map(|user| format!("--user={user}")));
    if client.password_file.is_none() {
        words.push("--password".to_owned());
    }
    words.extend(service.database.clone());
    words
}

/// libpq has two options: it verifies the name in `host` and connects to the address in `hostaddr`.
fn postgres(service: &ServiceEndpoint, client: &Client<'_>) -> String {
    let mut parts = vec![
        format!("host={}", service.host),
        format!("hostaddr={}", client.local.host),
        format!("port={}", client.local.port),
        "sslmode=verify-full".to_owned(),
        format!("sslrootcert={}", quote_value(&client.ca.display().to_string())),
        format!("dbname={}", quote_value(service.database.as_deref().unwrap_or("postgres"))),
    ];
    parts.extend(user(service, client).map(|user| format!("user={}", quote_value(user))));
    let line = join(&["psql".to_owned(), parts.join(" ")]);
    match client.password_file {
        Some(file) => format!("PGPASSFILE={} {line}", join(&[file.display().to_string()])),
        None => line,
    }
}

/// Quotes a value of libpq's connection string if necessary.
fn quote_value(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-~@+".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn redis(service: &ServiceEndpoint, client: &Client<'_>) -> Vec<String> {
    let program = if service.engine == "valkey" { "valkey-cli" } else { "redis-cli" };
    let mut words = vec![program.to_owned()];
    words.extend(["-h".into(), client.local.host.into(), "-p".into(), client.local.port.to_string()]);
    if service.tls {
        words.extend(["--tls".into(), "--sni".into(), service.host.clone()]);
    }
    words
}

/// `sqlcmd` has no option for a CA bundle. Both implementations of `sqlcmd` read OpenSSL's environment variable on Linux.
fn sql_server(service: &ServiceEndpoint, client: &Client<'_>) -> String {
    let server = format!("tcp:{},{}", client.local.host, client.local.port);
    let mut words = vec!["sqlcmd".to_owned(), "-S".into(), server, "-N".into(), "-F".into(), service.host.clone()];
    words.extend(user(service, client).into_iter().flat_map(|user| ["-U".to_owned(), user.to_owned()]));
    format!("SSL_CERT_FILE={} {}", join(&[client.ca.display().to_string()]), join(&words))
}

/// Verifies the CA but not the host name, because `mongosh` can compare the certificate's name only with the host that it
/// connects to.
fn mongodb(service: &ServiceEndpoint, client: &Client<'_>) -> Vec<String> {
    let url = format!("mongodb://{}:{}/?directConnection=true&retryWrites=false", client.local.host, client.local.port);
    let mut words = vec!["mongosh".to_owned(), url, "--tls".into()];
    words.extend(["--tlsCAFile".into(), client.ca.display().to_string(), "--tlsAllowInvalidHostnames".into()]);
    words.extend(user(service, client).into_iter().flat_map(|user| ["--username".to_owned(), user.to_owned()]));
    words
}

fn curl(service: &ServiceEndpoint, client: &Client<'_>) -> Vec<String> {
    let to = format!("{}:{}:{}:{}", service.host, service.port, client.local.host, client.local.port);
    vec!["curl".into(), "--connect-to".into(), to, format!("https://{}/", service.host)]
}

/// Without `--kubeconfig`, the line overrides only the server. All other settings come from the user's current context.
fn kubectl(service: &ServiceEndpoint, client: &Client<'_>) -> Vec<String> {
    if let Some(file) = client.kubeconfig {
        return vec!["kubectl".into(), format!("--kubeconfig={}", file.display()), "get".into(), "pods".into()];
    }
    let server = format!("--server=https://{}:{}", client.local.host, client.local.port);
    vec!["kubectl".into(), server, format!("--tls-server-name={}", service.host), "get".into(), "pods".into()]
}

fn user<'a>(service: &'a ServiceEndpoint, client: &Client<'a>) -> Option<&'a str> {
    client.user.or(service.user.as_deref())
}

/// Joins the words to a command line for a shell. Words without special characters are not quoted.
fn join(words: &[String]) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,@%+".contains(&byte);
    let quoted = words.iter().map(|word| match !word.is_empty() && word.bytes().all(plain) {
        true => word.clone(),
        false => shlex::try_quote(word).map_or_else(|_| word.clone(), Into::into),
    });
    quoted.collect::<Vec<_>>().join(" ")
}
