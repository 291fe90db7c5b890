//! The command line with which a service's own client uses the tunnel, ready to paste into a shell.
//!
//! The service's certificate names its real host, but the client connects to a local address. If the client can be told
//! both, the command line keeps the certificate verified.

use std::path::Path;

use ssm_forward::ServiceEndpoint;

/// The local end of the tunnel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalEnd<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: u16,
}

/// Where AWS publishes the certificate authorities of RDS.
pub(crate) const RDS_CA_URL: &str = "https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem";

/// What a client gets in addition to the endpoint.
pub(crate) struct Client<'a> {
    pub(crate) local: LocalEnd<'a>,
    /// The file with the certificate authorities of RDS.
    pub(crate) ca: &'a Path,
    /// The user, if one was named; otherwise the master user.
    pub(crate) user: Option<&'a str>,
    /// A file with the password for the engine's client.
    pub(crate) password_file: Option<&'a Path>,
    /// A kubeconfig that uses the tunnel.
    pub(crate) kubeconfig: Option<&'a Path>,
}

/// The command line; `None` for an engine without a common client.
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

/// The family of an engine as AWS names it, such as `aurora-mysql` or `sqlserver-ex`.
pub(crate) fn family(engine: &str) -> Option<Family> {
    let has = |part: &str| engine.contains(part);
    Some(match engine {
        "opensearch" => Family::OpenSearch,
        "kubernetes" => Family::Kubernetes,
        "docdb" => Family::MongoDb,
        "redis" | "valkey" => Family::Redis,
        // The first version of Aurora used only this name.
        "aurora" => Family::MySql,
        _ if has("mysql") || has("mariadb") => Family::MySql,
        _ if has("postgres") => Family::Postgres,
        _ if has("sqlserver") => Family::SqlServer,
        _ => return None,
    })
}

/// The client compares the certificate's name with the host that it connects to, and no other name can be set. So the
/// authority is verified, but the name is not. `loose-` makes the client of MariaDB ignore an option that only MySQL's
/// has.
fn mysql(service: &ServiceEndpoint, client: &Client<'_>) -> Vec<String> {
    let mut words = vec!["mysql".to_owned()];
    // It must be the first option.
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

/// libpq has two options: `host` is verified, `hostaddr` is connected to.
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

/// A value of libpq's connection string.
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

/// `sqlcmd` has no option for certificate authorities. Both of its implementations read OpenSSL's variable on Linux.
fn sql_server(service: &ServiceEndpoint, client: &Client<'_>) -> String {
    let server = format!("tcp:{},{}", client.local.host, client.local.port);
    let mut words = vec!["sqlcmd".to_owned(), "-S".into(), server, "-N".into(), "-F".into(), service.host.clone()];
    words.extend(user(service, client).into_iter().flat_map(|user| ["-U".to_owned(), user.to_owned()]));
    format!("SSL_CERT_FILE={} {}", join(&[client.ca.display().to_string()]), join(&words))
}

/// Its certificate cannot be compared with another name than the host's. So the authority is verified, but the name is
/// not.
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

/// Everything else comes from the current context, as for the cluster itself.
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

/// The words for a shell; those without special characters are not quoted.
fn join(words: &[String]) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,@%+".contains(&byte);
    let quoted = words.iter().map(|word| match !word.is_empty() && word.bytes().all(plain) {
        true => word.clone(),
        false => shlex::try_quote(word).map_or_else(|_| word.clone(), Into::into),
    });
    quoted.collect::<Vec<_>>().join(" ")
}
